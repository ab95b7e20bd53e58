"""Progress in bars, drawn for a terminal that is not there."""

import io
import re

import pytest
from rich.console import Console

from limbeck.cli.bars import Bars
from limbeck.core.events import EpochDone, Note, Progress, StageDone, StageStarted


@pytest.fixture
def screen():
    """What a terminal was sent."""
    return io.StringIO()


def bars(screen: io.StringIO, stages: int = 2) -> Bars:
    return Bars(stages, Console(file=screen, force_terminal=True, width=140, height=30, markup=False, highlight=False, emoji=False))


def plain(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


def test_the_running_stage_has_a_bar_with_its_metrics(screen):
    with bars(screen) as hear:
        hear(StageStarted("teacher", "train", 40))
        hear(Progress("teacher", 20, 40, {"loss": 1.25, "validation_accuracy": 0.5}))
        hear._bars.refresh()
        assert "teacher (train 1/2)" in plain(screen)
        assert "20/40" in plain(screen)
        assert "loss 1.2500, validation accuracy 50.0%" in plain(screen)
        hear(EpochDone("teacher", 1, 1, {"train_loss": 0.75}))
        hear._bars.refresh()
        assert "loss 0.7500" in plain(screen)


def test_what_is_done_stays_as_a_line_and_the_bar_goes(screen):
    with bars(screen) as hear:
        hear(StageStarted("teacher", "train", 4))
        hear(StageDone("teacher", "train", False, 2.0, {"accuracy": 0.5}))
        assert not hear._bars.tasks
        hear(StageDone("alone", "train", True, 0.0, {}))
        hear(StageStarted("measurement", "measure"))  # beyond the recipe's stages: no number, an unknown length
        hear._bars.refresh()
    text = plain(screen)
    assert "teacher: done in 2.0 s; accuracy 50.0%" in text
    assert "alone: reused" in text
    assert "measurement (measure)" in text


def test_brackets_in_a_note_are_text(screen):
    with bars(screen) as hear:
        hear(Note("inputs [N, 8] and [bold]", "int8", loud=True))
    assert "int8: NOTE: inputs [N, 8] and [bold]" in plain(screen)


def test_events_of_no_stage_do_no_harm(screen):
    with bars(screen) as hear:
        hear(Progress("x", 1, 2))
        hear(EpochDone("x", 1, 2, {}))
    assert "x" not in plain(screen)


def test_the_cursor_comes_back_after_an_error(screen):
    with pytest.raises(KeyboardInterrupt), bars(screen) as hear:
        hear(StageStarted("teacher", "train", 4))
        raise KeyboardInterrupt
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
