"""Self-distillation that is stopped and started again ends with the same weights, to the bit: students, averages, snapshots, exits, adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.watched import Watched, press
from torch import Tensor, nn

from limbeck.core.errors import Interrupted
from limbeck.core.events import Event, silent
from limbeck.core.lookup import build
from limbeck.core.scheme import Scheme
from limbeck.core.task import Batch, Task
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime

PLAN = Training.model_validate({"epochs": 3, "batch_size": 16, "optimizer": {"kind": "adam", "lr": 0.01}})
CNN = {"kind": "cnn", "width": 4}
KD = ("response.kd", {"temperature": 3.0})
SUPERVISED = ("supervised", {})
HINT = ("feature.fitnet", {"layers": {"exits.exit1.pool": "of.pool"}})
WAYS: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]] | None, str, list[tuple[str, dict[str, Any]]]]] = {
    "mean teacher": (CNN, ("ema", {"decay": 0.9}), "offline", [KD, SUPERVISED]),
    "snapshot": (CNN, ("snapshot", {"every": 2}), "offline", [KD, SUPERVISED]),
    "the student as it began": (CNN, ("snapshot", {}), "offline", [KD, SUPERVISED]),
    "virtual": (CNN, ("virtual", {}), "offline", [KD, SUPERVISED]),
    "progressive": (CNN, None, "progressive", [SUPERVISED]),
    "exits": ({"kind": "exits", "of": CNN, "at": ["layer1"], "width": 3}, ("exits", {}), "exits", [KD, SUPERVISED, HINT]),
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    made = np.random.default_rng(0)
    labels = made.integers(0, 3, 150)
    images = (made.normal(size=(150, 6, 6)) + 0.5 * labels[:, None, None]).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=images[:120], y_train=labels[:120], x_test=images[120:], y_test=labels[120:])
    return build("tasks", "image", {"data": "npz", "root": str(path), "validation": 0.2, "augment": [{"kind": "flip"}]})


def scheme_of(way: str, task: Task, example: Batch) -> Scheme:
    model, teacher, scheme, objectives = WAYS[way]
    torch.manual_seed(0)
    student: nn.Module = build("models", model["kind"], {key: value for key, value in model.items() if key != "kind"}, in_shape=(1, 6, 6), classes=3)
    asks = {"ema": (student,), "snapshot": (student,)}
    taught = None if teacher is None else build("teachers", teacher[0], teacher[1], *asks.get(teacher[0], ()))
    made: Scheme = build("schemes", scheme, {}, student, taught, [0.5 * build("objectives", *one) for one in objectives], task, example, task.facts())
    torch.manual_seed(1)
    return made


def run(way: str, task: Task, folder: Path | None = None, stop: int = 0, listener: Callable[[Event], None] = silent) -> tuple[dict[str, Tensor], Any]:
    loader = task.loader("train", batch_size=16)
    scheme = scheme_of(way, task, next(iter(loader.batches(0))))
    work = None if folder is None else Work(folder, folder / "logs")
    fitted = fit(scheme, task, Watched(loader, press(stop)), PLAN, Runtime(), work=work, listener=listener)
    return dict(scheme.state_dict()), fitted


@pytest.mark.parametrize("way", list(WAYS))
def test_stopped_within_an_epoch_and_at_its_end_it_ends_the_same(way: str, task: Task, tmp_path: Path) -> None:
    whole, told = run(way, task)
    steps = len(task.loader("train", batch_size=16))
    with pytest.raises(Interrupted):
        run(way, task, tmp_path, stop=steps + 2)
    with pytest.raises(Interrupted):
        run(way, task, tmp_path, stop=steps - 2)  # the end of the second epoch
    resumed, retold = run(way, task, tmp_path)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert retold.history == told.history
    assert all(torch.equal(told.best["student"][name], retold.best["student"][name]) for name in told.best["student"])
