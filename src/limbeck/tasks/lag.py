"""A long time lag: the first symbol says what the last one will be, and nothing between the two does."""

from functools import cached_property
from typing import Unpack

import torch
from torch.nn import functional as F

from limbeck.core.draw import below, bits, key
from limbeck.core.errors import RecipeError
from limbeck.core.files import digest
from limbeck.core.task import Facts, How, Loader, Split, Task

from ._as_plain import AsPlain
from ._memory import Held, Shelf
from .classify import Classify

__all__ = ["Lag"]


class Lag(AsPlain):
    """Sequences of symbols with a long time lag: a or x, then always b1 ... bL, then the first symbol again, which is to be predicted.

    An example is `[L + 1, L + 2]`, the symbols up to bL, each one-hot among a, x, b1 ... bL; its label is the symbol that follows, a or x. The first symbol of
    an example is a draw from (seed, id), the other one for every second id, so that splits of even size hold as many of each. There are two sequences in all,
    in every split: what is asked is whether a learner finds out, not whether it generalises. `accuracy` is 1/2 for one that has forgotten how it began.
    After Schmidhuber, "Learning complex, extended sequences using the principle of history compression", Neural Computation 4(2), 1992, whose L is 20.

    Args:
        lag: L, the symbols between the two that belong together.
        examples: of the training split.
        validation: examples of the validation split; 0 for none.
        test: examples of the test split.
        seed: of the draw.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: a split that is not there.
    """

    def __init__(self, *, lag: int = 20, examples: int = 400, validation: int = 100, test: int = 200, seed: int = 0) -> None:
        for name, value, least in (("lag", lag, 1), ("examples", examples, 1), ("validation", validation, 0), ("test", test, 1), ("seed", seed, 0)):
            if value < least:
                raise RecipeError(f"{name} is {value} for tasks.lag; it must be {least} or more")
        self._sizes: dict[Split, int] = {"train": examples, "validation": validation, "test": test}
        self._lag, self._seed = lag, seed
        self._plain = Classify()

    @cached_property
    def _shelf(self) -> Shelf:
        """Every split's examples, one split after another."""
        ids = torch.arange(sum(self._sizes.values()))
        first = (below(bits(ids // 2, key(self._seed)), 2, 1) + ids) % 2
        between = torch.arange(2, self._lag + 2).expand(len(first), -1)
        symbols = torch.cat([first.unsqueeze(1), between], 1)
        rows = dict(zip(self._sizes, ids.split(list(self._sizes.values())), strict=True))
        held = Held(F.one_hot(symbols, self._lag + 2).float(), first, torch.zeros(1), None)
        return Shelf(held, {split: rows[split] for split in self.splits()})

    def facts(self) -> Facts:
        names = ("a", "x", *(f"b{at}" for at in range(1, self._lag + 1)))
        return Facts((self._lag + 1, len(names)), len(names), names, self._sizes["train"], preprocess={"kind": "lag", "lag": self._lag})

    def fingerprint(self) -> str:
        """A digest of every option: they say all of the data."""
        return digest({"task": "lag", "lag": self._lag, "sizes": self._sizes, "seed": self._seed})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        return self._shelf.loader(split, **how)

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation", "test") if self._sizes["validation"] else ("train", "test")
