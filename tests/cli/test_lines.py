"""Progress in plain lines."""

import pickle

import pytest

from limbeck.cli import lines
from limbeck.cli.lines import Lines, loud_only
from limbeck.core.events import EpochDone, Note, Progress, StageDone, StageStarted


@pytest.fixture
def at(monkeypatch):
    """Set the clock."""
    now = [100.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def said(capsys) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_stage_from_start_to_end(at, capsys):
    tell = Lines()
    tell(StageStarted("teacher", "train", 40))
    tell(Progress("teacher", 10, 40, {"loss": 2.0}))
    at(5)
    tell(Progress("teacher", 20, 40, {"loss": 1.0}))
    tell(EpochDone("teacher", 1, 2, {"train_loss": 1.5, "validation_accuracy": 0.5}))
    at(15)
    tell(Progress("teacher", 40, 40, {"loss": 0.5}))
    tell(EpochDone("teacher", 2, 2, {"train_loss": 0.5, "validation_accuracy": 0.75}))
    tell(StageDone("teacher", "train", False, 15.0, {"accuracy": 0.8, "parameters": 1234}))
    tell(StageDone("alone", "train", True, 0.0, {}))
    assert said(capsys) == [
        "teacher: train, 40 steps",
        "teacher: epoch 1/2, loss 1.5000, validation accuracy 50.0%, 10.0 s left",  # 10 steps took 5 s, 20 are left
        "teacher: epoch 2/2, loss 0.5000, validation accuracy 75.0%",
        "teacher: done in 15.0 s; accuracy 80.0%, 1,234 parameters",
        "alone: reused",
    ]


def test_quick_epochs_are_not_all_told(at, capsys):
    tell = Lines()
    for epoch in range(1, 101):
        at(epoch * 0.5)
        tell(EpochDone("s", epoch, 100, {"train_loss": 1.0}))
    told = said(capsys)
    assert len(told) == 26  # the first and one every 2 s, the last among them: epoch 1, 5, 9, ..., 97, 100
    assert told[0].startswith("s: epoch 1/100")
    assert told[-1].startswith("s: epoch 100/100")


def test_a_long_epoch_is_told_of_in_between(at, capsys):
    tell = Lines()
    tell(StageStarted("s", "train", 1000))
    for step in range(1, 1000):
        at(step)
        tell(Progress("s", step, 1000, {"loss": 1.0}))
    told = said(capsys)
    assert len(told) == 1 + 33
    assert told[1] == "s: step 30/1,000, loss 1.0000, 16:10 left"


def test_a_resumed_stage_estimates_from_the_steps_it_takes(at, capsys):
    tell = Lines()
    tell(StageStarted("s", "train", 1000))
    tell(Progress("s", 910, 1000))
    at(40)
    tell(Progress("s", 920, 1000))
    assert said(capsys)[-1].endswith(", 5:20 left")


def test_notes_and_quiet(capsys):
    Lines()(Note("12 [N] left", "int8", loud=True))
    Lines()(Note("goes on"))
    loud_only(Note("the machine was busy", loud=True))
    loud_only(Note("goes on"))
    loud_only(StageStarted("s", "train"))
    assert said(capsys) == ["int8: NOTE: 12 [N] left", "goes on", "NOTE: the machine was busy"]


def test_both_can_go_to_another_process(capsys):
    for listener in (Lines(), loud_only):
        pickle.loads(pickle.dumps(listener))(Note("x", loud=True))
    assert said(capsys) == ["NOTE: x"] * 2
