"""Ask a model about a whole split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Link
from limbeck.core.task import Batch, Split, Task

from .runtime import Runtime

__all__ = ["Predictions", "evaluate", "predict", "scored"]


@dataclass(frozen=True)
class Predictions:
    """What a model said about a split: `logits [N, C]`, `labels` and `ids [N]` of its predictions, in the split's order.

    `labels` are `[N]` where `link` is softmax, and what the task has (`[N, C]`) elsewhere; `scores`: the mean of each of the task's scores.
    """

    logits: Tensor
    labels: Tensor
    ids: Tensor
    link: Link
    scores: Mapping[str, float]


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, split: Split, runtime: Runtime, *, batch_size: int = 1024) -> dict[str, float]:
    """Return the mean of each of the task's scores over a split, shared out over the ranks; the model's mode is left as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    sums: dict[str, Tensor] = {}
    count = 0

    def scores(raw: object) -> dict[str, Tensor]:
        batch = task.batch(raw)
        return task.scores(task.forward(model, batch), batch)

    for raw in task.loader(split, batch_size=batch_size, rank=runtime.rank, world=runtime.world, device=runtime.device).batches(0):
        found = scores(raw)
        for name, score in found.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=runtime.device)) + score.sum(dtype=torch.float64)
        count += next(iter(found.values())).numel()
    if not sums:  # fewer batches than ranks: this one adds nothing, but must name what the others sum
        first = next(iter(task.loader(split, batch_size=batch_size, device=runtime.device).batches(0)))
        sums = {name: torch.zeros((), dtype=torch.float64, device=runtime.device) for name in scores(first)}
    for module, mode in modes.items():
        module.training = mode
    names = sorted(sums)
    counted = torch.tensor(float(count), dtype=torch.float64, device=runtime.device)
    total = runtime.sum(torch.stack([counted, *(sums[name] for name in names)])).tolist()
    return {name: value / total[0] for name, value in zip(names, total[1:], strict=True)}


@torch.no_grad()
def scored(answer: Callable[[Batch], Knowledge], task: Task, split: Split, *, batch_size: int = 64, device: torch.device | None = None) -> dict[str, float]:
    """Return the mean of each of the task's scores over a split without keeping an answer, and how many predictions that were, as `predictions`."""
    sums: dict[str, float] = {}
    count = 0
    for raw in task.loader(split, batch_size=batch_size, device=device).batches(0):
        batch = task.batch(raw)
        found = task.scores(answer(batch), batch)
        sums = {name: sums.get(name, 0.0) + score.sum(dtype=torch.float64).item() for name, score in found.items()}
        count += next(iter(found.values())).numel()
    return {name: value / max(count, 1) for name, value in sums.items()} | {"predictions": count}


@torch.no_grad()
def predict(answer: Callable[[Batch], Knowledge], task: Task, split: Split, *, batch_size: int = 1024, device: torch.device | None = None) -> Predictions:
    """Collect what `answer`, a model asked as the task does it or several, says about a labelled split: its valid predictions alone."""
    logits, labels, ids = [], [], []
    sums: dict[str, float] = {}
    seen, count, link = 0, 0, "softmax"
    for raw in task.loader(split, batch_size=batch_size, device=device).batches(0):
        batch = task.batch(raw)
        if "label" not in batch:
            raise MismatchError(f"a batch of the {split} split has no labels (fields {', '.join(batch)}): accuracy cannot be measured without them")
        said = answer(batch)
        numbers = batch["id"] if "id" in batch else torch.arange(seen, seen + len(batch["label"]))
        for found, values in ((logits, said.main.logits.float()), (labels, batch["label"]), (ids, numbers)):
            found.append((values if said.mask is None else values[said.mask]).cpu())
        seen, link = seen + len(batch["label"]), said.main.link
        scores = task.scores(said, batch)
        sums = {name: sums.get(name, 0.0) + score.sum(dtype=torch.float64).item() for name, score in scores.items()}
        count += next(iter(scores.values())).numel()
    means = {name: value / max(count, 1) for name, value in sums.items()}
    return Predictions(torch.cat(logits), torch.cat(labels), torch.cat(ids), link, means)
