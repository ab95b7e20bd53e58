"""What two processes are asked to do in `test_runtime.py`; a module of its own, so that they can import it."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import DataError, Interrupted
from limbeck.core.events import Listener, Note, silent
from limbeck.core.lookup import build
from limbeck.core.objective import Term
from limbeck.core.task import Batch, Loader
from limbeck.engine.evaluate import evaluate
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime

TERMS = {
    "kd": [("response.kd", {"temperature": 3.0}, 0.7), ("supervised", {}, 0.3)],
    "hints": [("feature.fitnet", {"layers": {"layer1": "layer1"}, "reduction": "mean"}, 1.0)],
    "contest": [
        ("adversarial.logit_discriminator", {"rounds": 2, "hidden": 8}, 0.3),
        ("feature.fitnet", {"layers": {"layer1": "layer1"}}, 0.1),
        ("supervised", {}, 1.0),
    ],
    "gathered": [
        ("relation.rkd_distance", {"layers": {"layer1": "layer1"}}, 1.0),
        ("relation.pkt", {"layers": {"layer2": "layer1"}}, 1.0),
        ("response.dist", {}, 0.5),
        ("supervised", {}, 1.0),
    ],
    "balance": [("response.kd", {}, 0.5), ("supervised", {}, 1.0)],
    "both": [("feature.fitnet", {"layers": {"layer2": "layer1"}}, 0.1), ("response.kd", {}, 0.5), ("supervised", {}, 0.5)],
}
"""Objectives by scenario; with `hints` alone, nothing reads the student's head."""


class Pressing(Loader):
    """A loader during whose batch `number` somebody presses Ctrl-C."""

    def __init__(self, loader: Loader, number: int) -> None:
        self.loader, self.left = loader, number

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for batch in self.loader.batches(epoch, skip=skip):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            yield batch


def train(
    runtime: Runtime, root: str, scenario: str, options: dict[str, Any], folder: Path | None = None, press: int = 0
) -> tuple[list[float], dict[str, Tensor]]:
    """Train an MLP on another's knowledge: the mean loss of every epoch of ten steps, and the last weights."""
    task = build("tasks", "image", {"data": "npz", "root": root, "validation": 0.2, "class_weight": [0.5, 2.0, 1.0]})
    plan = Training.model_validate({"epochs": 5, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.05}, "clip": 2.0, **options})
    torch.manual_seed(0)
    student, teacher = (build("models", "mlp", {"widths": widths}, in_shape=(1, 6, 6), classes=3) for widths in ([10, 6], [14]))
    size = plan.batch_size // plan.accumulate // runtime.world
    loader = Pressing(task.loader("train", batch_size=size, rank=runtime.rank, world=runtime.world), press)
    built = [(build("objectives", kind, options), weight) for kind, options, weight in TERMS[scenario]]
    terms = [Term(objective, weight, gather=objective.batchwise) for objective, weight in built]
    how = {"balance": {"kind": "gradient_norm", "every": 3}} if scenario == "balance" else {}
    scheme = build("schemes", "offline", how, student, teacher, terms, task, next(loader.batches(0)), task.facts())
    work = None if folder is None else Work(folder, folder / "logs")
    told = fit(scheme, task, loader, plan, runtime, work=work, listener=silent)
    figures = [row[name] for row in told.history for name in ("train_loss", "gradient_norm", "validation_accuracy", "validation_loss")]
    return figures, dict(scheme.state_dict())


def together(runtime: Runtime, root: str, asked: list[tuple[str, dict[str, Any]]], out: str, tell: Listener) -> str:
    """Train every scenario, and leave the figures and both ranks' weights in `out`; then fail on the second rank alone.

    The first scenario is trained once more, with Ctrl-C on the second rank in the second epoch.
    """
    tell(Note(f"rank {runtime.rank} of {runtime.world}"))
    found = []
    for number, (scenario, options) in enumerate(asked):
        figures, weights = train(runtime, root, scenario, options, Path(out) / str(number))
        gathered = runtime.gather(torch.cat([value.flatten() for value in weights.values()]))
        found.append((figures, gathered.tolist()))
    try:
        train(runtime, root, *asked[0], Path(out) / "again", press=15 * runtime.rank)
        stopped = ""
    except Interrupted as error:
        stopped = str(error)
    figures, weights = train(runtime, root, *asked[0], Path(out) / "again")
    found.append((figures, runtime.gather(torch.cat([value.flatten() for value in weights.values()])).tolist()))
    task = build("tasks", "image", {"data": "npz", "root": root, "validation": 0.2})
    model = build("models", "mlp", {"widths": [4]}, in_shape=(1, 6, 6), classes=3)
    uneven = [evaluate(model, task, "validation", runtime, batch_size=size) for size in (1000, 17, 1)]
    if runtime.is_main:
        (Path(out) / "found.json").write_text(json.dumps([found, uneven, stopped]))
    runtime.barrier()
    if runtime.rank == 1:
        raise DataError("label 7 is out of range")
    runtime.sum(torch.ones(()))  # nobody answers
    return "unreached"
