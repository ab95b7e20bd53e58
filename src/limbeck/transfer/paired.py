"""Two modalities of the same thing: each example comes with its partner from a second task.

Gupta, Hoffman and Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016, arXiv:1507.00448: a teacher that looks at one half of the pairs
teaches a student that looks at the other.
"""

from collections.abc import Iterator
from typing import Literal, Unpack

import torch
from torch import Tensor

from limbeck.core.draw import bits, key, permutation
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

__all__ = ["Paired"]

_PARTNER, _LABELLED = 0x7061, 0x6C62
"""What the draws of partners, and of the examples that keep their label, are keyed by beside the seed."""
_SHOWN = 3


class Paired(Transfer):
    """Give each example of the task its partner's input in the field `paired`: what a teacher that is asked about `input: paired` looks at.

    By `id` the partner is the example of the second task with the same id: two views of one thing, such as an image and its edges. By `label` it is one with
    the same label, drawn anew for each example and epoch: a stand-in for recordings that were made together, such as a spoken digit and a written one. The
    second task's training split is held in memory, unaugmented; the labels by which partners are found are not given away with `labelled`: only so many
    examples, the same mix of classes, keep theirs for the objectives that read labels, and the field `labelled [N]` says which.

    Args:
        by: id or label.
        missing: what becomes of examples without a partner: refuse them with their number, or drop them from their batches.
        labelled: how many training examples keep their label; all where it is left out.

    Raises:
        RecipeError: an option that cannot be meant.
        MismatchError: examples without a partner, tasks of different classes, batches without ids or labels.
    """

    def __init__(
        self, partner: Task, *, by: Literal["id", "label"] = "label", missing: Literal["refuse", "drop"] = "refuse", labelled: int | None = None
    ) -> None:
        if labelled is not None and labelled < 1:
            raise RecipeError(f"labelled is {labelled}; it is a number of training examples, 1 or more: leave it out to keep every label")
        self.partner, self.by, self.missing, self.labelled = partner, by, missing, labelled

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        """Raises MismatchError for examples without a partner, and for a teacher that knows some draws of the augmentation alone."""
        if how.get("views") is not None:
            raise MismatchError("a cached teacher knows one modality and `paired` gives two: take {kind: frozen, of: ..., input: paired}")
        if (ours := task.facts().class_names) != (theirs := self.partner.facts().class_names) and self.by == "label":
            raise MismatchError(f"the task's classes are {', '.join(ours)} and its partner's {', '.join(theirs)}: to pair by label they must be the same")
        device = how.get("device")
        inputs, found = _everything(self.partner, self.by, device)
        mine = _field(task, self.by)
        groups = _grouped(found, int(max(found.max(), mine.max())) + 1)
        alone = ~torch.isin(mine, found)
        if alone.any() and self.missing == "refuse":
            shown = ", ".join(str(int(one)) for one in mine[alone].unique()[:_SHOWN])
            raise MismatchError(
                f"{int(alone.sum())} of {len(mine)} training examples have no partner ({self.by} {shown}{' ...' if int(alone.sum()) > _SHOWN else ''}): "
                "mend the data, or leave them out with missing: drop"
            )
        if alone.all():
            raise DataError("no training example has a partner: there is nothing to teach on")
        keep = None if self.labelled is None else _chosen(task, self.labelled, how.get("seed", 0)).to(device)
        return _Pairs(task.loader("train", **how), inputs, groups, self.by, how.get("seed", 0), bool(alone.any()), keep, device)


def _everything(task: Task, by: str, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Every input of a training split `[M, ...]`, in order, and the field by which partners are found `[M]`, on the CPU."""
    inputs, values = list[Tensor](), list[Tensor]()
    for raw in task.loader("train", batch_size=1024, device=device, whole=True).batches(0):
        batch = task.batch(raw)
        inputs.append(batch["input"])
        values.append(_of(batch, by))
    return torch.cat(inputs), torch.cat(values)


def _field(task: Task, by: str) -> Tensor:
    return torch.cat([_of(task.batch(raw), by) for raw in task.loader("train", batch_size=1024, whole=True).batches(0)])


def _of(batch: Batch, by: str) -> Tensor:
    if by not in batch:
        raise MismatchError(f"partners are found by {by}, and a batch has the fields {', '.join(batch)}: give it one, or pair by {_OTHER[by]}")
    return batch[by].cpu()


_OTHER = {"id": "label", "label": "id"}


def _grouped(values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of each value: all rows in order of value `[M]`, where each value's begin `[V]`, and how many they are `[V]`."""
    sizes = values.bincount(minlength=count)
    return values.argsort(stable=True), sizes.cumsum(0) - sizes, sizes


def _chosen(task: Task, count: int, seed: int) -> Tensor:
    """The ids of `count` examples that keep their label, the same mix of classes: each class's in a seeded order, taken in turn."""
    ids, labels = _field(task, "id"), _field(task, "label")
    if count > len(ids):
        raise RecipeError(f"labelled is {count}, and there are {len(ids)} training examples: leave it out to keep every label")
    order = permutation(len(ids), key(seed, _LABELLED))
    place = torch.zeros_like(order)
    for label in labels.unique():
        rows = order[labels[order] == label]
        place[rows] = torch.arange(len(rows))
    return ids[(place * (int(labels.max()) + 1) + labels).argsort()[:count]]


class _Pairs(Loader):
    """A task's batches with their partners."""

    def __init__(
        self, loader: Loader, inputs: Tensor, groups: tuple[Tensor, Tensor, Tensor], by: str, seed: int, some_alone: bool, keep: Tensor | None,
        device: torch.device | None,
    ) -> None:  # fmt: skip
        self._loader, self._inputs, self._by, self._seed, self._drops, self._keep = loader, inputs, by, seed, some_alone, keep
        self._order, self._starts, self._sizes = (one.to(device) for one in groups)

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """A pure function of (seed, epoch), as the task's own are."""
        for batch in self._loader.batches(epoch, skip=skip):
            if self._drops:
                there = self._sizes[batch[self._by]] > 0
                if not there.any():
                    continue
                batch = {name: value[there] for name, value in batch.items()}
            value = batch[self._by]
            drawn = bits(batch["id"], key(self._seed, epoch, _PARTNER))
            word = (drawn >> 32).bitwise_and(0xFFFFFFFF)
            place = (word * self._sizes[value]).bitwise_right_shift(32)  # as `below`, with a count for each
            partner = self._order[self._starts[value] + place]
            more = {} if self._keep is None else {"labelled": torch.isin(batch["id"], self._keep)}
            yield {**batch, "paired": self._inputs.index_select(0, partner), **more}
