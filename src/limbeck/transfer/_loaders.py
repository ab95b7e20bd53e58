"""Loaders over a task's own: each batch changed, or rows left out and the rest cut anew.

Shapes: N examples of a batch, M of the training split.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.task import Batch, Loader, Task

__all__ = ["Changed", "Cut", "needed", "taken", "training_labels"]

_READ = 1024
"""Examples that are read at once where only their labels are wanted."""


class Changed(Loader):
    """Another loader's batches, each as `change(batch, view)` has it: a pure function of what the batch holds and of the view, which is the epoch, or
    the epoch mod `views`."""

    def __init__(self, loader: Loader, task: Task, change: Callable[[Batch, int], Batch], views: int | None) -> None:
        self._loader, self._task, self._change, self._views = loader, task, change, views

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        view = epoch if self._views is None else epoch % self._views
        for raw in self._loader.batches(epoch, skip=skip):
            yield self._change(self._task.batch(raw), view)


class Cut(Loader):
    """The rows of one process's whole loader that `stays(batch) [N]` says, cut into batches of `size`: number k of rank r is piece `k * world + r`.

    `count` batches an epoch; what is left after them is left out, but for `whole`, whose last piece may be short. A skipped batch is read and dropped: which
    rows it held decides where the next one begins.
    """

    def __init__(
        self, loader: Loader, task: Task, stays: Callable[[Batch], Tensor], *, size: int, count: int, rank: int, world: int, whole: bool = False
    ) -> None:
        self._loader, self._task, self._stays = loader, task, stays
        self._size, self._count, self._rank, self._world, self._whole = size, count, rank, world, whole

    def __len__(self) -> int:
        return self._count

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for piece, batch in enumerate(self._pieces(epoch)):
            number, rank = divmod(piece, self._world)
            if number >= self._count:
                return
            if rank == self._rank and number >= skip:
                yield batch

    def _pieces(self, epoch: int) -> Iterator[Batch]:
        held: Batch | None = None
        for raw in self._loader.batches(epoch):
            batch = self._task.batch(raw)
            some = taken(batch, self._stays(batch).nonzero().flatten())
            held = some if held is None else {name: torch.cat([value, some[name]]) for name, value in held.items()}
            while len(held["input"]) >= self._size:
                yield {name: value[: self._size] for name, value in held.items()}
                held = {name: value[self._size :] for name, value in held.items()}
        if self._whole and held is not None and len(held["input"]):
            yield held


def taken(batch: Batch, rows: Tensor) -> Batch:
    """Return some rows of a batch.

    Raises:
        MismatchError: a field without a row for each input, such as the edges of a graph.
    """
    for name, value in batch.items():
        if value.shape[:1] != batch["input"].shape[:1]:
            raise MismatchError(
                f"the field {name!r} of a batch is {list(value.shape)} for {len(batch['input'])} inputs: rows cannot be taken out of such a batch"
            )
    return {name: value.index_select(0, rows) for name, value in batch.items()}


def needed(batch: Batch, what: str, *fields: str) -> None:
    """Refuse a batch without a field that a transfer set reads."""
    for name in fields:
        if name not in batch:
            way = ": give mappings with `id`, a whole number that names each example" if name == "id" else ""
            raise MismatchError(f"{what} needs the field {name!r}, and the batch has {', '.join(batch)}{way}")


def training_labels(task: Task, what: str) -> tuple[Tensor, Tensor]:
    """Read the ids `[M]` and the labels `[M]` of the training split, once, in its own order.

    Raises:
        MismatchError: no ids, or labels that are not one class for each example.
    """
    ids, labels = list[Tensor](), list[Tensor]()
    for raw in task.loader("train", batch_size=_READ, whole=True).batches(0):
        batch = task.batch(raw)
        needed(batch, what, "id", "label")
        if batch["label"].shape != batch["id"].shape or batch["label"].is_floating_point():
            raise MismatchError(f"{what} needs one class for each example, and the labels are {batch['label'].dtype} {list(batch['label'].shape)}")
        ids.append(batch["id"].cpu())
        labels.append(batch["label"].cpu())
    return torch.cat(ids), torch.cat(labels)
