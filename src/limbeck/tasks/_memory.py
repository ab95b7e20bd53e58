"""Data held as tensors and batched by index on the fly: no workers, no work per example.

Shapes: M examples held, N in a batch, C channels, H rows, W columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.draw import key, permutation
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Batch, Loader, Split

from ._augment import Crop, Flip, Shift, Slide, augmented
from ._preprocess import normalised

__all__ = ["Held", "Later", "MemoryLoader", "Norm"]


@dataclass(frozen=True)
class Norm:
    """What raw pixels still need: `(raw / scale - mean) / std`, `mean` and `std` `[C, 1, 1]`."""

    scale: float
    mean: Tensor
    std: Tensor

    def __call__(self, raw: Tensor) -> Tensor:
        return normalised(raw, self.scale, self.mean, self.std)


@dataclass(frozen=True)
class Held:
    """Images `[M, C, H, W]`, float32 and done, or raw with the `norm` that each batch still needs, and labels `[M]`; a row's number is its example's id.

    `fill [C]`: what the raw value zero is in `images`.
    """

    images: Tensor
    labels: Tensor
    fill: Tensor
    norm: Norm | None

    def to(self, device: torch.device) -> "Held":
        norm = self.norm and Norm(self.norm.scale, self.norm.mean.to(device), self.norm.std.to(device))
        return Held(self.images.to(device), self.labels.to(device), self.fill.to(device), norm)


class MemoryLoader(Loader):
    """The batches of some rows of held data, as `Task.loader` promises them.

    `rows` on the CPU; `augment` and the shuffle are for the training split alone, `views` and `whole` mean what they mean there.
    """

    def __init__(
        self,
        held: Held,
        rows: Tensor,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        augment: Sequence[Shift | Crop | Flip | Slide],
        views: int | None = None,
        whole: bool = False,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size is {batch_size}; it must be one or more")
        if views is not None and views < 1:
            raise RecipeError(f"views is {views}; it must be one or more")
        assert 0 <= rank < world
        self._shuffled = split == "train" and not whole
        if self._shuffled and batch_size * world > len(rows):
            on_all = f" on each of {world} processes" if world > 1 else ""
            raise DataError(f"batch_size is {batch_size}{on_all}, and the training split has {len(rows)} examples: no batch can be filled; lower batch_size")
        self._held, self._rows, self._augment = held, rows, tuple(augment) if split == "train" else ()
        self._views = views if split == "train" else None
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world

    def __len__(self) -> int:
        if self._shuffled:
            return len(self._rows) // (self._size * self._world)
        batches = -(-len(self._rows) // self._size)
        return -(-(batches - self._rank) // self._world)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Give the batches of `epoch` from number `skip` on: a pure function of (seed, epoch), whatever was drawn before."""
        held, size, norm, augment = self._held, self._size, self._held.norm, self._augment
        order = self._rows[permutation(len(self._rows), key(self._seed, epoch))] if self._shuffled else self._rows
        view = epoch if self._views is None else epoch % self._views
        order = order.to(held.images.device)
        for number in range(skip, len(self)):
            start = (number * self._world + self._rank) * size
            ids = order[start : start + size]
            images = held.images.index_select(0, ids)  # several times as fast on a CPU as images[ids]
            if augment:
                images = augmented(images, ids, augment, seed=self._seed, view=view, fill=held.fill)
            if norm is not None:
                images = norm(images)
            batch = {"input": images, "label": held.labels.index_select(0, ids), "id": ids}
            yield batch if self._views is None else {**batch, "view": torch.full_like(ids, view)}


class Later(Loader):
    """The batches of another loader, ids counted from `first`."""

    def __init__(self, loader: Loader, first: int) -> None:
        self._loader, self._first = loader, first

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for batch in self._loader.batches(epoch, skip=skip):
            yield {**batch, "id": batch["id"] + self._first}
