"""Ask a model about a whole split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Link
from limbeck.core.task import Batch, Split, Task

from .runtime import Runtime

__all__ = ["Predictions", "Scored", "evaluate", "predict", "scored"]


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


@dataclass(frozen=True)
class Scored:
    """What a model's predictions over a split are worth, row by row: `ids [M]`, `count [M]` of its predictions, and the sum of each score over them, `[M]`."""

    ids: Tensor
    count: Tensor
    sums: Mapping[str, Tensor]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each score over all predictions."""
        return {name: (value.sum() / self.count.sum().clamp(min=1)).item() for name, value in self.sums.items()}


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
def scored(answer: Callable[[Batch], Knowledge], task: Task, split: Split, *, batch_size: int = 64, device: torch.device | None = None) -> Scored:
    """Return the sums of the task's scores over each row of a split, without keeping an answer."""
    ids, counts = list[Tensor](), list[Tensor]()
    sums: dict[str, list[Tensor]] = {}
    for raw in task.loader(split, batch_size=batch_size, device=device).batches(0):
        batch = task.batch(raw)
        said = answer(batch)
        found = task.scores(said, batch)
        rows = len(batch["input"])
        each = next(iter(found.values())).numel()
        row = torch.arange(rows).repeat_interleave(each // rows) if said.mask is None else said.mask.nonzero()[:, 0].cpu()
        ids.append(batch["id"].cpu() if "id" in batch else torch.arange(rows) + sum(map(len, ids)))
        counts.append(torch.bincount(row, minlength=rows))
        for name, score in found.items():
            sums.setdefault(name, []).append(torch.zeros(rows, dtype=torch.float64).index_add_(0, row, score.cpu().double()))
    return Scored(torch.cat(ids), torch.cat(counts), {name: torch.cat(parts) for name, parts in sums.items()})


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
