"""The training inputs with the labels of most of them taken away.

Shapes: N examples of a batch, M of the training split, L of them labelled.
"""

from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor

from limbeck.core.draw import bits, key, permutation
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

from ._loaders import Changed, needed, taken, training_labels

__all__ = ["Unlabelled", "chosen"]

_CHOICE, _TURNS = 0x63686F696365, 0x7475726E73


def chosen(ids: Tensor, labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Return the `count` of `ids [M]` that keep their label, ascending: as many of each class as there can be, the first by the hash of (seed, id).

    Classes take turns, one example each, so that a class that runs out leaves its turns to the others. More labels keep those that fewer kept.
    """
    hashed = bits(ids, key(seed, _CHOICE))
    order = hashed.argsort(stable=True)
    turn, first = torch.empty_like(ids), torch.empty_like(ids)
    for label in labels.unique():
        own = order[labels[order] == label]
        turn[own] = torch.arange(len(own))
    first[order] = torch.arange(len(ids))
    queue = (turn * len(ids) + first).argsort()
    return ids[queue[:count]].sort().values


class Unlabelled(Transfer):
    """The training inputs with the labels of all but a few taken away: the teacher is asked about every input, the labels count where they are.

    The batch's `labelled [N]` says which examples have a label; objectives that read labels are means over these alone, and the label of the others is zero,
    whatever it was. Which they are depends on `split_seed`, not on the run's seed: the same number of each class, as far as there are as many.
    Bucila, Caruana & Niculescu-Mizil 2006, "Model compression", KDD, and Chen et al. 2020, arXiv:2006.10029, section 2, teach on unlabelled inputs.

    Args:
        labelled: how many keep their label: a whole number of 1 or more, or a fraction of the training split, below 1; 0 takes all labels away.
        per_batch: how many labelled examples each batch holds, in turn, beside as many unlabelled inputs as fill it; an epoch is then a pass over the inputs,
            the labelled ones among them without their label. Left out, each batch holds whatever falls into it.
        split_seed: the seed of the choice.

    Raises:
        RecipeError: numbers that cannot be meant.
        DataError: fewer examples than are to be labelled.
        MismatchError: labels that are not one class for each example, batches without ids, or, with `per_batch`, a teacher whose store wants a pass in order.
    """

    def __init__(self, *, labelled: float, per_batch: int | None = None, split_seed: int = 0) -> None:
        if not labelled >= 0 or (labelled >= 1 and labelled != int(labelled)):
            raise RecipeError(f"labelled is {labelled:g}: a whole number of examples, or a fraction below 1")
        if per_batch is not None and (per_batch < 1 or labelled == 0):
            raise RecipeError(
                f"per_batch is {per_batch} and labelled is {labelled:g}: a batch cannot hold so many; both are one or more, or per_batch is left out"
            )
        self.labelled, self.per_batch, self.split_seed = labelled, per_batch, split_seed

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        ids, labels = training_labels(task, "unlabelled")
        count = round(self.labelled * len(ids)) if self.labelled < 1 else int(self.labelled)
        if count > len(ids):
            raise DataError(f"labelled is {count}, and the training split has {len(ids)} examples: lower it")
        known = chosen(ids, labels, count, seed=self.split_seed)
        known = known.to(how.get("device"))
        if self.per_batch is None:
            return Changed(task.loader("train", **how), task, lambda batch, view: _stripped(batch, torch.isin(batch["id"], known)), how.get("views"))
        size = how["batch_size"]
        if how.get("whole"):
            raise MismatchError("per_batch shows an example more than once in an epoch, and a pass in order was asked for: leave per_batch out")
        if not count or self.per_batch >= size:
            raise RecipeError(f"per_batch is {self.per_batch} of batches of {size} with {count} labelled examples in all: leave room for unlabelled ones")
        inputs = task.loader("train", **{**how, "batch_size": size - self.per_batch})
        alone: How = {**how, "batch_size": max(size, 512), "rank": 0, "world": 1, "whole": True}
        return _Proportioned(inputs, task.loader("train", **alone), task, known, self.per_batch, how)


class _Proportioned(Loader):
    """So many labelled examples in every batch, in turns of an order of their own, before the unlabelled ones of `inputs`."""

    def __init__(self, inputs: Loader, whole: Loader, task: Task, known: Tensor, share: int, how: How) -> None:
        self._inputs, self._whole, self._task, self._known, self._share = inputs, whole, task, known, share
        self._seed, self._rank, self._world = how.get("seed", 0), how.get("rank", 0), how.get("world", 1)

    def __len__(self) -> int:
        return len(self._inputs)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        held = self._labelled(epoch)
        count = len(held["id"])
        for number, raw in enumerate(self._inputs.batches(epoch, skip=skip), start=skip):
            inputs = _stripped(self._task.batch(raw), None)
            start = (number * self._world + self._rank) * self._share
            places = torch.arange(start, start + self._share)
            turns = places // count
            rows = torch.cat([self._turn(epoch, turn, count)[places[turns == turn] % count] for turn in turns.unique().tolist()])
            some = taken(held, rows.to(held["id"].device))
            yield {name: torch.cat([some[name], value]) for name, value in inputs.items()}

    def _turn(self, epoch: int, turn: int, count: int) -> Tensor:
        """The order in which the labelled examples come in their turn number `turn` of an epoch."""
        return permutation(count, key(self._seed, epoch, turn, _TURNS))

    def _labelled(self, epoch: int) -> Batch:
        """The labelled examples as this epoch augments them, in the order of their ids."""
        parts: list[Batch] = []
        for raw in self._whole.batches(epoch):
            batch = self._task.batch(raw)
            parts.append(taken(batch, torch.isin(batch["id"], self._known).nonzero().flatten()))
        held = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {**taken(held, held["id"].argsort()), "labelled": torch.ones(len(held["id"]), dtype=torch.bool, device=held["id"].device)}


def _stripped(batch: Batch, kept: Tensor | None) -> Batch:
    """Take the labels away of all examples, or of all but `kept [N]`."""
    needed(batch, "unlabelled", "id", "label")
    label = batch["label"]
    labelled = torch.zeros_like(label, dtype=torch.bool) if kept is None else kept
    return {**batch, "label": torch.where(labelled, label, torch.zeros_like(label)), "labelled": labelled}
