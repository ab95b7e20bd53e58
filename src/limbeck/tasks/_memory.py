"""Data held as tensors and batched by index on the fly: no workers, no work per example.

Shapes: M examples held, N in a batch, C channels, H rows, W columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from limbeck.core.draw import key, permutation
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Batch, How, Loader, Split, starts

from ._augment import Crop, Flip, Shift, Slide, augmented
from ._preprocess import normalised

__all__ = ["Held", "Later", "MemoryLoader", "Norm", "Shelf"]

Step = Shift | Crop | Flip | Slide
_ABSENT: Mapping[Split, str] = {"validation": "there is no validation split: set `validation` above 0"}


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
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        augment: Sequence[Step] = (),
        views: int | None = None,
        whole: bool = False,
    ) -> None:
        if views is not None and views < 1:
            raise RecipeError(f"views is {views}; it must be one or more")
        self._shuffled = split == "train" and not whole
        self._starts = starts(len(rows), {"batch_size": batch_size, "rank": rank, "world": world, "whole": not self._shuffled})
        self._held, self._rows, self._augment = held, rows, tuple(augment) if split == "train" else ()
        self._views = views if split == "train" else None
        self._size, self._seed = batch_size, seed

    def __len__(self) -> int:
        return len(self._starts)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Give the batches of `epoch` from number `skip` on: a pure function of (seed, epoch), whatever was drawn before."""
        held, size, norm, augment = self._held, self._size, self._held.norm, self._augment
        order = self._rows[permutation(len(self._rows), key(self._seed, epoch))] if self._shuffled else self._rows
        view = epoch if self._views is None else epoch % self._views
        order = order.to(held.images.device)
        for start in self._starts[skip:]:
            ids = order[start : start + size]
            images = held.images.index_select(0, ids)  # several times as fast on a CPU as images[ids]
            if augment:
                images = augmented(images, ids, augment, seed=self._seed, view=view, fill=held.fill)
            if norm is not None:
                images = norm(images)
            batch = {"input": images, "label": held.labels.index_select(0, ids), "id": ids}
            yield batch if self._views is None else {**batch, "view": torch.full_like(ids, view)}


class Shelf:
    """Held data and the rows of each split, on whatever device they are asked for; `absent` says of a split why it is not there."""

    def __init__(self, held: Held, rows: Mapping[Split, Tensor], *, augment: Sequence[Step] = (), absent: Mapping[Split, str] = _ABSENT) -> None:
        self.held, self.rows, self._augment, self._absent = held, rows, augment, absent
        self._on: dict[torch.device | None, Held] = {None: held}

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        """Raises DataError for a split that is not there."""
        if split not in self.rows:
            raise DataError(self._absent[split])
        device = how.get("device")
        if device is not None and device not in self._on:
            self._on[device] = self.held.to(device)
        told: dict[str, Any] = {name: value for name, value in how.items() if name != "device"}
        return MemoryLoader(self._on[device], self.rows[split], split, augment=self._augment, **told)


class Later(Loader):
    """The batches of another loader, ids counted from `first`."""

    def __init__(self, loader: Loader, first: int) -> None:
        self._loader, self._first = loader, first

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for batch in self._loader.batches(epoch, skip=skip):
            yield {**batch, "id": batch["id"] + self._first}
