"""Training states come back whole, and what is damaged or foreign is refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.errors import ArtifactError
from limbeck.core.task import Task
from limbeck.engine import checkpoint
from limbeck.engine.checkpoint import Position
from limbeck.engine.loop import optimizers
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime, Setup

from .conftest import Trial, hint, mlp, supervised


def plan(**options: Any) -> Training:
    return Training.model_validate({"epochs": 2, "batch_size": 16, "optimizer": {"kind": "adam"}, **options})


def setup(trial: Trial, runtime: Runtime) -> Setup:
    scheme = trial.scheme()
    return runtime.setup(scheme, optimizers(scheme, trial.plan))


@pytest.fixture
def trial(make_task: Callable[..., Task]) -> Trial:
    return Trial(make_task(), plan(), lambda: mlp(5, dropout=0.1), lambda: mlp(9), lambda: [hint(), supervised()])


def saved(trial: Trial, folder: Path) -> Path:
    trial.run(folder)
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    return found


def test_everything_comes_back(trial: Trial, tmp_path: Path) -> None:
    runtime = Runtime()
    ours = setup(trial, runtime)
    batch = next(trial.loader().batches(0))
    for _ in range(3):
        losses = ours.wrapped(batch, "student")
        runtime.backward(losses.loss)
        ours.optimizers["student"].step()
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    position = Position(step=3, epoch=1, micro=2, best_epoch=1, best=0.5, stale=1, sums={"loss": (0.1, 3.0)}, history=[{"epoch": 1, "train_loss": 0.1 + 0.2}])
    checkpoint.save(tmp_path, position, ours, runtime, keep=1)
    expected = [random.random(), np.random.rand(), torch.rand(()).item()]
    state = {name: value.clone() for name, value in ours.scheme.state_dict().items()}
    assert any("projector" in name for name in state)
    slots: dict[str, Any] = dict(ours.optimizers["student"].state_dict())

    theirs = setup(trial, runtime)
    assert any(not torch.equal(value, theirs.scheme.state_dict()[name]) for name, value in state.items())
    path = checkpoint.latest(tmp_path)
    assert path is not None
    found = checkpoint.restore(path, theirs, runtime)
    assert [random.random(), np.random.rand(), torch.rand(()).item()] == expected
    assert all(torch.equal(value, theirs.scheme.state_dict()[name]) for name, value in state.items())
    again: dict[str, Any] = dict(theirs.optimizers["student"].state_dict())
    assert len(slots["state"]) == len(again["state"]) == len(list(ours.scheme.parameters()))
    for index, one in slots["state"].items():
        assert one.keys() == again["state"][index].keys()
        assert all(torch.equal(value, again["state"][index][name]) for name, value in one.items())
    told = vars(found) | {"sums": {name: tuple(pair) for name, pair in found.sums.items()}}
    assert told == vars(position)


def test_the_newest_are_kept(make_task: Callable[..., Task], tmp_path: Path) -> None:
    Trial(make_task(), plan(epochs=5, keep=2), lambda: mlp(4)).run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000048", "00000060"]
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "00000060"


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.latest(tmp_path) is None


def test_every_flipped_byte_is_noticed(trial: Trial, tmp_path: Path) -> None:
    path = saved(trial, tmp_path)
    for name in ("state.safetensors", "state.json", "manifest.json"):
        whole = (path / name).read_bytes()
        for place in [0, len(whole) // 2, len(whole) - 2, *random.Random(0).sample(range(len(whole)), 8)]:
            if whole[place : place + 1].isspace():
                continue
            (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtifactError, match=str(path)):
                trial.run(tmp_path)
        for damaged in (whole[:-2], whole[: len(whole) // 2], b""):
            (path / name).write_bytes(damaged)
            with pytest.raises(ArtifactError, match=str(path)):
                trial.run(tmp_path)
        (path / name).unlink()
        with pytest.raises(ArtifactError, match=str(path)):
            trial.run(tmp_path)
        (path / name).write_bytes(whole)
    trial.run(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        lambda trial: setattr(trial, "student", lambda: mlp(6)),
        lambda trial: setattr(trial, "student", lambda: mlp(5, 5)),
        lambda trial: setattr(trial, "objectives", lambda: [supervised()]),
        lambda trial: setattr(trial, "objectives", lambda: [supervised(), hint()]),
    ],
)  # fmt: skip
def test_the_checkpoint_of_another_model_is_refused(trial: Trial, tmp_path: Path, other: Callable[[Trial], None]) -> None:
    saved(trial, tmp_path)
    other(trial)
    with pytest.raises(ArtifactError, match=r"checkpoint of another model or other objectives: delete .* and run again"):
        trial.run(tmp_path)


@pytest.mark.parametrize("optimizer", [{"kind": "sgd"}, {"kind": "adamw"}])
def test_the_checkpoint_of_another_optimizer_is_refused(trial: Trial, tmp_path: Path, optimizer: dict[str, str]) -> None:
    saved(trial, tmp_path)
    trial.plan = plan(epochs=3, optimizer=optimizer)
    with pytest.raises(ArtifactError, match="checkpoint of another optimizer"):
        trial.run(tmp_path)


def test_another_number_of_processes_goes_on_from_an_epoch_s_end_only(trial: Trial, tmp_path: Path) -> None:
    runtime = Runtime()
    ours = setup(trial, runtime)
    for micro in (0, 3):
        checkpoint.save(tmp_path / str(micro), Position(step=3, micro=micro), ours, runtime, keep=1)
        path = checkpoint.latest(tmp_path / str(micro))
        assert path is not None
        told = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(told | {"world": 2}))
        if micro:
            with pytest.raises(ArtifactError, match="saved within an epoch by 2 processes, and there are 1: run it with devices: 2"):
                checkpoint.restore(path, ours, runtime)
        else:
            assert checkpoint.restore(path, ours, runtime).step == 3


def test_a_frozen_teacher_is_in_no_checkpoint(trial: Trial, tmp_path: Path) -> None:
    path = saved(trial, tmp_path)
    small, large = (path / "state.safetensors").stat().st_size, sum(weight.numel() * 4 for weight in mlp(2000).parameters())
    trial.teacher = lambda: nn.Sequential(mlp(2000))
    trial.objectives = lambda: [hint(layers={"layer1": "0.layer1"}), supervised()]
    assert (saved(trial, tmp_path / "large") / "state.safetensors").stat().st_size < small + 3 * 4 * 2000 * 6 < large
