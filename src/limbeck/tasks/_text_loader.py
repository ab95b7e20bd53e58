"""Rows of tokens held in memory, batched by index. Shapes: M rows held, N in a batch, T tokens."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from limbeck.core.draw import key, permutation
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Batch, Loader, Split

__all__ = ["Change", "RowsLoader"]

_PLACES = frozenset({"document", "place"})
"""Fields by which a token is found again: given with `views` alone, to whoever knows its answers."""

Change = Callable[[dict[str, Tensor], int, int], dict[str, Tensor]]
"""What is done to a batch: (fields, seed, view) -> fields."""


class RowsLoader(Loader):
    """The batches of some rows of held fields `[M, ...]`, as `Task.loader` promises them; a row's number is its id, and every field comes as int64.

    Where a token stands (`document`, `place`) is told with `views` alone. `rows` on the CPU; the shuffle is for the training split alone. `change` is asked for
    every split: of the training split with the epoch, or with `views` the epoch modulo those, and of the others with view 0.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        rows: Tensor,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        views: int | None = None,
        whole: bool = False,
        change: Change | None = None,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size is {batch_size}; it must be one or more")
        if views is not None and views < 1:
            raise RecipeError(f"views is {views}; it must be one or more")
        assert 0 <= rank < world
        self._trains, self._shuffled = split == "train", split == "train" and not whole
        if self._shuffled and batch_size * world > len(rows):
            on_all = f" on each of {world} processes" if world > 1 else ""
            raise DataError(f"batch_size is {batch_size}{on_all}, and the training split has {len(rows)} rows: no batch can be filled; lower batch_size")
        self._fields = fields if views is not None else {name: held for name, held in fields.items() if name not in _PLACES}
        self._rows, self._change = rows, change
        self._views = views if self._trains else None
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world

    def __len__(self) -> int:
        if self._shuffled:
            return len(self._rows) // (self._size * self._world)
        return -(-(-(-len(self._rows) // self._size) - self._rank) // self._world)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Give the batches of `epoch` from number `skip` on: a pure function of (seed, epoch), whatever was drawn before."""
        order = self._rows[permutation(len(self._rows), key(self._seed, epoch))] if self._shuffled else self._rows
        view = 0 if not self._trains else epoch if self._views is None else epoch % self._views
        order = order.to(next(iter(self._fields.values())).device)
        for number in range(skip, len(self)):
            start = (number * self._world + self._rank) * self._size
            ids = order[start : start + self._size]
            batch = {name: held.index_select(0, ids).long() for name, held in self._fields.items()} | {"id": ids}
            if self._change is not None:
                batch = self._change(batch, self._seed, view)
            yield batch if self._views is None else {**batch, "view": torch.full_like(ids, view)}
