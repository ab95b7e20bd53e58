"""Which example is trained on, validated on and tested on: stratified, by a seed.

`labels [M]` are of all rows; a split is a sorted int64 tensor of row numbers.
"""

from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.core.draw import key, permutation
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Split

__all__ = ["Splitting", "carve", "fold_rows", "subset_rows"]

_FOLDS, _CARVE, _SUBSET = 1, 2, 3  # what a permutation is for, so that no two uses of one seed share a draw


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """What a task's options say of its splits.

    `validation`: the fraction of the training data held back; `folds` and `fold`: in how many folds data without a test split are cut, and which one of them
    is it; `seed`: of all three draws; `subset`: how many training examples are used, all where it is None.

    Raises:
        RecipeError: options that cannot be meant.
    """

    validation: float
    folds: int = 5
    fold: int = 0
    seed: int
    subset: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise RecipeError(f"validation is {self.validation:g}; it is a fraction of the training data, 0 or more and less than 1")
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise RecipeError(f"fold is {self.fold} of {self.folds} folds; folds is 2 or more, and fold counts from 0 to folds - 1")
        if self.subset is not None and self.subset < 1:
            raise RecipeError(f"subset is {self.subset}; it is a number of training examples, 1 or more")

    @property
    def options(self) -> tuple[Any, ...]:
        """What a fingerprint holds of it."""
        return astuple(self)

    def splits(self) -> tuple[Split, ...]:
        """The splits that there are, a test split among them."""
        return ("train", "validation", "test") if self.validation else ("train", "test")

    def rows(self, strata: Tensor, tests: int, *, own: str) -> dict[Split, Tensor]:
        """Return the rows of each split of data of classes `strata [M]`, whose last `tests` are a test split of their own; `own` says whose it is.

        Raises:
            RecipeError: folds of data that have a test split.
        """
        everything = torch.arange(len(strata))
        if not tests:
            train, test = fold_rows(strata, everything, self.folds, self.fold, self.seed)
        elif (self.fold, self.folds) != (0, 5):
            raise RecipeError(f"folds and fold are for data without a test split, and {own}: leave them out")
        else:
            train, test = everything[:-tests], everything[-tests:]
        return {**self.carved(strata, train), "test": test}

    def carved(self, strata: Tensor, train: Tensor) -> dict[Split, Tensor]:
        """Return the rows of the training and the validation split, where `train` are those of both."""
        rows: dict[Split, Tensor] = {"train": train}
        if self.validation:
            rows["train"], rows["validation"] = carve(strata, train, self.validation, self.seed)
        if self.subset is not None:
            rows["train"] = subset_rows(rows["train"], self.subset, self.seed)
        return rows


def _shuffled_by_class(labels: Tensor, rows: Tensor, seed: int, use: int) -> Tensor:
    """Return `rows` in order of class, and in random order within a class."""
    mixed = rows[permutation(len(rows), key(seed, use))]
    return mixed[labels[mixed].argsort(stable=True)]


def fold_rows(labels: Tensor, rows: Tensor, folds: int, fold: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return what is left and fold number `fold` of `folds`: a class's counts, and the folds' sizes, differ by one at most between folds.

    Raises:
        DataError: a class with a single example, which cannot be both trained on and tested on.
    """
    counts = labels[rows].bincount()
    if (counts == 1).any():
        raise DataError(
            f"class {int((counts == 1).nonzero()[0])} has one example: it cannot be in training and in a test fold; add some, drop it, or give a test split"
        )
    if folds > len(rows):
        raise RecipeError(f"folds is {folds}, and there are {len(rows)} examples: choose fewer folds")
    dealt = _shuffled_by_class(labels, rows, seed, _FOLDS)
    taken = torch.arange(len(dealt)) % folds == fold
    return dealt[~taken].sort().values, dealt[taken].sort().values


def carve(labels: Tensor, rows: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return what is left and `round(fraction * len(rows))` rows with the same mix of classes.

    Each class gives the whole part of its share, those with the largest remainders one more. Every class keeps one example at least, so that many classes of a
    single example make the carved part smaller.

    Raises:
        DataError: nothing would be carved.
    """
    want = round(fraction * len(rows))
    counts = labels[rows].bincount()
    share = fraction * counts.double()
    most = (counts - 1).clamp(min=0)
    give = share.floor().long().minimum(most)
    for label in (share - share.floor()).argsort(descending=True, stable=True).tolist():
        if int(give.sum()) < want and give[label] < most[label]:
            give[label] += 1
    if not int(give.sum()):
        raise DataError(
            f"validation={fraction:g} of {len(rows)} training examples is none, for every class keeps one: raise it, or set it to 0 to validate on nothing"
        )
    dealt = _shuffled_by_class(labels, rows, seed, _CARVE)
    place = torch.arange(len(dealt)) - (counts.cumsum(0) - counts)[labels[dealt]]  # of a row within its class
    taken = place < give[labels[dealt]]
    return dealt[~taken].sort().values, dealt[taken].sort().values


def subset_rows(rows: Tensor, count: int, seed: int) -> Tensor:
    """Return the first `count` rows of a seeded order: a smaller subset lies within a larger one."""
    if count > len(rows):
        raise DataError(f"subset is {count}, and the training split has {len(rows)} examples: choose that many or fewer")
    return rows[permutation(len(rows), key(seed, _SUBSET))[:count]].sort().values
