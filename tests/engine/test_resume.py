"""A training that is stopped and started again ends with the same weights, to the bit, as one that never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.watched import Killed, kill, press
from torch import Tensor

from limbeck.core.errors import Interrupted
from limbeck.core.events import EpochDone, Event
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.engine import checkpoint
from limbeck.engine.plan import Training

from .conftest import Trial, game, hint, kd, mlp, supervised

STEPS = 12  # of an epoch: 192 examples by 16


def cnn() -> torch.nn.Module:
    made = build("models", "cnn", {"width": 4}, in_shape=(1, 6, 6), classes=3)
    return made.to(memory_format=torch.channels_last)


def plan(**options: Any) -> Training:
    return Training.model_validate({"epochs": 4, "batch_size": 16, "optimizer": {"kind": "adam", "lr": 0.01}, **options})


def taught() -> list[Any]:
    return [kd(0.5, temperature={"kind": "linear", "start": 8, "end": 1}), hint(0.1), supervised(0.5)]


@pytest.fixture(params=["dropout", "cnn", "distilled", "accumulated", "contested", "balanced"])
def trial(request: pytest.FixtureRequest, make_task: Callable[..., Task]) -> Trial:
    task = make_task(augment=[{"kind": "shift", "pixels": 1}, {"kind": "flip"}])
    match request.param:
        case "dropout":
            return Trial(task, plan(clip=1.0), lambda: mlp(16, 8, dropout=0.3))
        case "cnn":
            return Trial(task, plan(schedule={"kind": "onecycle"}), cnn)
        case "distilled":
            return Trial(task, plan(optimizer={"kind": "sgd"}), lambda: mlp(6, dropout=0.1), lambda: mlp(24), taught)
        case "contested":
            critic = {"logit_discriminator": {"kind": "adam", "lr": 0.001, "betas": [0.0, 0.9]}}
            training = plan(optimizer={"kind": "sgd"}, optimizers=critic, accumulate=2, clip=1.0)
            return Trial(task, training, cnn, lambda: mlp(24), lambda: [game(0.1, loss="wgan_gp", rounds=2), supervised()])
        case "balanced":
            return Trial(task, plan(), lambda: mlp(6, dropout=0.1), lambda: mlp(24), taught, options={"balance": {"kind": "gradient_norm", "every": 7}})
        case _:
            return Trial(task, plan(accumulate=2), lambda: mlp(16, dropout=0.3))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def die_after(epoch: int) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == epoch:
            raise Killed

    return hear


def test_killed_after_an_epoch(trial: Trial, tmp_path: Path) -> None:
    whole, told = trial.run()
    with pytest.raises(Killed):
        trial.run(tmp_path, listener=die_after(2))
    resumed, retold = trial.run(tmp_path)
    assert same(whole, resumed)
    assert retold.history == told.history
    assert (retold.steps, retold.best_epoch) == (told.steps, told.best_epoch)
    assert same(told.best["student"], retold.best["student"])


def test_interrupted_and_killed_within_epochs(trial: Trial, tmp_path: Path) -> None:
    whole, told = trial.run()
    shares = trial.plan.accumulate
    with pytest.raises(Interrupted, match=f"interrupted at step {STEPS + 5} of {4 * STEPS} of train; the state is saved"):
        trial.run(tmp_path, at=press((STEPS + 5) * shares))
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"{STEPS + 5:08d}"
    with pytest.raises(Killed):
        trial.run(tmp_path, at=kill(4 * shares))
    with pytest.raises(Interrupted):
        trial.run(tmp_path, at=press((STEPS - 5) * shares))  # the last step of the second epoch
    resumed, retold = trial.run(tmp_path)
    assert same(whole, resumed)
    assert retold.history == told.history
    assert same(told.best["student"], retold.best["student"])


def test_a_resumed_run_draws_only_what_is_left(make_task: Callable[..., Task], tmp_path: Path) -> None:
    trial = Trial(make_task(), plan(epochs=2), lambda: mlp(4))
    with pytest.raises(Interrupted):
        trial.run(tmp_path, at=press(7))
    drawn: list[int] = []
    trial.run(tmp_path, at=lambda number, batch: (drawn.append(number), batch)[1])
    assert len(drawn) == 2 * STEPS - 7


def test_a_finished_run_trains_no_more_and_gives_the_same(make_task: Callable[..., Task], tmp_path: Path) -> None:
    trial = Trial(make_task(), plan(epochs=2), lambda: mlp(4))
    whole, told = trial.run(tmp_path)

    def refuse(number: int, batch: Any) -> Any:
        raise AssertionError("a finished run drew a batch")

    again, retold = trial.run(tmp_path, at=refuse)
    assert same(whole, again) and retold.history == told.history
    assert same(told.best["student"], retold.best["student"])


def test_more_epochs_go_on_from_the_last(make_task: Callable[..., Task], tmp_path: Path) -> None:
    constant = {"schedule": {"kind": "constant"}}
    task = make_task()
    whole, told = Trial(task, plan(**constant), lambda: mlp(4, dropout=0.2)).run()
    Trial(task, plan(epochs=2, **constant), lambda: mlp(4, dropout=0.2)).run(tmp_path)
    more, retold = Trial(task, plan(**constant), lambda: mlp(4, dropout=0.2)).run(tmp_path)
    assert same(whole, more) and retold.history == told.history


def test_ctrl_c_without_a_folder_saves_nothing_and_does_not_say_so(make_task: Callable[..., Task]) -> None:
    with pytest.raises(Interrupted, match=r"interrupted at step 3 of 24 of train$"):
        Trial(make_task(), plan(epochs=2), lambda: mlp(4)).run(at=press(3))
