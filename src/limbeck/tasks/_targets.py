"""Tasks whose label is a row of numbers for each example, from a user's own loaders or from one `.npz`."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.core.task import Split

from ._adapter import as_batch
from ._file import FileSupply
from ._supply import Supplied, UserLoaders

__all__ = ["Targeted"]


class Targeted(Supplied):
    """A task of targets that `target` reads of so many examples, the same from a loader's batch and from the file at `root`.

    Raises:
        RecipeError: loaders and a file.
    """

    def __init__(
        self,
        loaders: Mapping[Split, Iterable[Any]] | None,
        root: str | None,
        target: Callable[[object, int], Tensor],
        *,
        input: str,
        label: str,
        validation: float,
        split_seed: int,
        normalize: bool,
    ) -> None:
        name = type(self).__name__
        if loaders and root:
            raise RecipeError(f"{name} has loaders and root {root!r}: give one of the two")
        read = partial(as_batch, input=input, label=label, task=name, target=target)
        file = FileSupply(Path(root), target, validation=validation, split_seed=split_seed, normalize=normalize) if root else None
        super().__init__(file or UserLoaders(loaders, read, name), read)
