"""Tables or images and targets of any shape in one `.npz`: x_train, y_train, x_test and y_test, or without a test split.

Shapes: M examples (training rows first, then the test split's own), F features, C targets.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError
from limbeck.core.files import digest
from limbeck.core.task import Batch, How, Loader, Split

from ._arrays import as_nchw, check_finite
from ._fingerprint import file_hash
from ._memory import Held, Shelf
from ._npz import read_members
from ._preprocess import normalised, statistics
from ._split import Splitting
from ._supply import Supply

__all__ = ["FileSupply"]


class _Loaded(NamedTuple):
    """What a file holds: examples by split, what was done to the inputs, and the names of the classes."""

    shelf: Shelf
    preprocess: dict[str, Any]
    names: tuple[str, ...] | None


class FileSupply(Supply):
    """The examples of one `.npz`, held in memory; `target` reads the targets of so many examples, as for a batch.

    Inputs `[M, F]` are a table, `[M, H, W]` and with channels images; each feature, or channel, is brought to mean 0 and deviation 1 over the training split
    where `normalize` says so. `validation` is a seeded share of the training rows, mixed evenly, without regard to their targets.
    """

    def __init__(self, path: Path, target: Callable[[object, int], Tensor], *, validation: float, split_seed: int, normalize: bool) -> None:
        self._splitting = Splitting(validation=validation, seed=split_seed)
        self._path, self._target, self._normalize = path, target, normalize

    @cached_property
    def _loaded(self) -> _Loaded:
        found, names = read_members(self._path)
        ends = [""] if "x" in found else ["_train", "_test"] if "x_test" in found else ["_train"]
        inputs = [_as_input(found[f"x{end}"], f"x{end} of {self._path}") for end in ends]
        if len(shapes := dict.fromkeys((one.dtype, one.shape[1:]) for one in inputs)) > 1:
            told = " and ".join(f"{kind}{list(shape)}" for kind, shape in shapes)
            raise DataError(f"the two splits of {self._path} have examples of {told}: both must be the same")
        targets = [self._targets(found[f"y{end}"], len(part), f"y{end}") for end, part in zip(ends, inputs, strict=True)]
        if len({one.shape[1] for one in targets}) > 1:
            raise DataError(f"the two splits of {self._path} have {' and '.join(str(one.shape[1]) for one in targets)} targets: both must have the same")
        if names is not None and len(names) != targets[0].shape[1]:
            raise DataError(f"{self._path} names {len(names)} classes and has {targets[0].shape[1]} targets: give a name for each")
        count = len(inputs[0])
        rows = self._splitting.carved(torch.zeros(count, dtype=torch.long), torch.arange(count))
        if len(inputs) > 1:
            rows["test"] = torch.arange(count, count + len(inputs[1]))
        raw = torch.from_numpy(np.concatenate(inputs))
        made, preprocess = self._prepared(raw, rows["train"])
        absent: dict[Split, str] = {
            "validation": f"{self._path} has no validation split: set `validation` above 0",
            "test": f"{self._path} has no test split: store x_test and y_test",
        }
        return _Loaded(Shelf(Held(made, torch.cat(targets), torch.zeros(1), None), rows, absent=absent), preprocess, names)

    def _targets(self, values: npt.NDArray[Any], count: int, name: str) -> Tensor:
        try:
            return self._target(torch.from_numpy(values), count)
        except (TypeError, MismatchError, DataError) as error:
            raise DataError(f"{name} of {self._path}: {error}") from None

    def _prepared(self, raw: Tensor, train: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return inputs as a model sees them, and what was done to them."""
        image = raw.ndim == 4
        maps = raw if image else raw[:, :, None, None]  # a feature is a channel of one pixel
        scale = 255.0 if raw.dtype == torch.uint8 else 1.0
        channels, height, width = maps.shape[1:]
        mean, std = statistics(maps, train, scale) if self._normalize else ([0.0] * channels, [1.0] * channels)
        told: dict[str, Any] = {"kind": "image" if image else "table", "scale": scale, "mean": mean, "std": std}
        told |= {"mode": "L" if channels == 1 else "RGB", "size": [height, width]} if image else {}
        return normalised(maps, scale, torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)).view(raw.shape), told

    def splits(self) -> tuple[Split, ...]:
        return tuple(self._loaded.shelf.rows)

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        return self._loaded.shelf.loader(split, **how)

    def fingerprint(self, kind: str) -> str:
        """The SHA-256 of the file's own and of every option that says what is made of it; where it lies does not matter."""
        return digest({"task": kind, "options": [self._splitting.validation, self._splitting.seed, self._normalize], "file": self._digest})

    @cached_property
    def _digest(self) -> str:
        return file_hash(self._path)

    def first(self) -> tuple[Batch, int]:
        held, rows = self._loaded.shelf.held, self._loaded.shelf.rows["train"]
        one = rows[:1]
        return {"input": held.images[one], "label": held.labels[one], "id": one}, len(rows)

    def preprocess(self) -> Mapping[str, Any]:
        return self._loaded.preprocess

    def names(self) -> tuple[str, ...] | None:
        return self._loaded.names


def _as_input(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Return a table `[M, F]` in float32, or images `[M, C, H, W]` in uint8 or float32; refuse what is neither, empty or not finite."""
    if values.ndim == 2:
        if values.dtype.kind not in "iufb":
            raise DataError(f"{where} holds {values.dtype}; a table holds numbers")
        values = values.astype(np.float32)
    else:
        values = as_nchw(values, where)
    if not values.size:
        raise DataError(f"{where} is empty: shape {list(values.shape)}")
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32, copy=False)
        check_finite(values, where)
    return values
