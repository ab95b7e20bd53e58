"""A task without training data: what its inputs are is known, and none of them is there; a labelled test split may be, to measure with."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.files import digest
from limbeck.core.lookup import build
from limbeck.core.task import Facts, How, Loader, Split, Task

from ._arrays import as_nchw, check_finite
from ._as_plain import AsPlain
from ._fingerprint import file_hash
from ._idx import idx_files, read_idx
from ._memory import Held, Later, Shelf
from ._npz import read_array_file
from ._preprocess import normalised
from .classify import Classify

__all__ = ["Tested", "Unseen"]

_BEFORE = {"mnist": 60_000, "fashion-mnist": 60_000, "npz": 0}
"""How many training rows come before the test split's, so that its ids are those that the image task gives."""


class Tested(BaseModel):
    """Labelled examples to measure with, the two t10k files of mnist and fashion-mnist, or x_test and y_test (or x and y) of an .npz."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: Literal["mnist", "fashion-mnist", "npz"] = "mnist"
    root: str


class Unseen(AsPlain):
    """A task without training data: shape, classes and preprocessing of its inputs are known from the teacher, and no training example is ever opened.

    The training split is seeded noise, `input [N, ...]` and `id [N]`, without labels: data-free schemes look at its size alone, and a student that is taught on
    it (`transfer: {kind: synthesised}` says the same) is the floor that they must beat. There is no validation split, so that the last epoch is what is kept.
    The test split, where one is named, is opened only to measure.

    Args:
        in_shape: one example's shape: channels, height, width.
        classes: how many classes the teacher knows.
        class_names: one name for each.
        examples: how many examples an epoch has.
        mean: of each channel, that the teacher's training took off; one number for each channel.
        std: of each channel, that the teacher's training divided by.
        scale: the raw value that means 1.0.
        test: labelled examples to measure with: {data: mnist, root: folder}, {data: fashion-mnist, root: folder} or {data: npz, root: file}.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: test files that are missing or damaged, or labels out of range.
        MismatchError: test examples of another shape.
    """

    def __init__(
        self,
        *,
        in_shape: list[int],
        classes: int,
        class_names: list[str] | None = None,
        examples: int = 10_000,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        scale: float = 255.0,
        test: Tested | None = None,
    ) -> None:
        if not in_shape or min(in_shape) < 1:
            raise RecipeError(f"in_shape is {in_shape}; it is one example's shape, such as [1, 28, 28]")
        if classes < 2 or examples < 1:
            raise RecipeError(f"classes is {classes} and examples {examples}; there must be 2 classes and 1 example or more")
        if class_names is not None and len(class_names) != classes:
            raise RecipeError(f"there are {len(class_names)} class_names for {classes} classes: give one for each, or none")
        self._mean, self._std = mean or [0.0] * in_shape[0], std or [1.0] * in_shape[0]
        for name, values in (("mean", self._mean), ("std", self._std)):
            if len(values) != in_shape[0] or not all(math.isfinite(value) and (value > 0 or name == "mean") for value in values):
                above = "" if name == "mean" else " above zero"
                raise RecipeError(f"{name} is {values}; it must be {in_shape[0]} finite number(s){above}, one for each channel")
        if not (math.isfinite(scale) and scale > 0):
            raise RecipeError(f"scale is {scale:g}; it is the raw value that means 1.0, a finite number above zero")
        self._shape, self._classes, self._examples, self._scale = tuple(in_shape), classes, examples, scale
        self._names = tuple(class_names) if class_names is not None else tuple(str(one) for one in range(classes))
        self._test = test
        self._plain = Classify()

    def facts(self) -> Facts:
        preprocess: dict[str, Any] = {}
        if len(self._shape) == 3:
            mode = "L" if self._shape[0] == 1 else "RGB"
            preprocess = {"kind": "image", "mode": mode, "size": list(self._shape[1:]), "scale": self._scale, "mean": self._mean, "std": self._std}
        return Facts(self._shape, self._classes, self._names, self._examples, labelled=False, preprocess=preprocess)

    @cached_property
    def _files(self) -> list[Path]:
        """The files of the test split: no others are looked for."""
        assert self._test is not None
        root = Path(self._test.root)
        if self._test.data == "npz":
            return [root]
        inner = root / self._test.data
        return idx_files(inner if inner.is_dir() else root, test_only=True)

    @cached_property
    def _shelf(self) -> Shelf:
        assert self._test is not None
        if self._test.data == "npz":
            found = read_array_file(self._files[0])
            x, y = ("x_test", "y_test") if "x_test" in found else ("x", "y")
            if not {x, y} <= found.keys():
                raise DataError(f"{self._files[0]} holds {', '.join(sorted(found)) or 'nothing'}; it must hold x_test and y_test, or x and y")
            images, labels = as_nchw(found[x], f"{x} of {self._files[0]}"), found[y]
        else:
            images, labels = read_idx(self._files[0], 3)[:, None], read_idx(self._files[1], 1)
        return self._checked(images, labels)

    def _checked(self, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Shelf:
        where = f"the test split in {self._files[0].parent}"
        if images.shape[1:] != self._shape:
            raise MismatchError(f"{where} has examples of {list(images.shape[1:])}, and in_shape is {list(self._shape)}: the two must agree")
        if not len(images) or labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise DataError(f"{where} has {len(images)} images and labels {labels.dtype} of shape {list(labels.shape)}: give a whole number for each image")
        if labels.min() < 0 or labels.max() >= self._classes:
            raise DataError(f"{where} has labels {labels.min()} to {labels.max()}, and there are {self._classes} classes, 0..{self._classes - 1}")
        check_finite(images, where)
        raw = torch.from_numpy(np.array(images))
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, *[1] * (raw.ndim - 2)) for values in (self._mean, self._std))
        held = Held(normalised(raw, self._scale, mean, std), torch.from_numpy(labels.astype(np.int64)), torch.zeros(self._shape[0]), None)
        return Shelf(held, {"test": torch.arange(len(labels))})

    def fingerprint(self) -> str:
        """The SHA-256 of the test files and of every option; where the files lie does not matter."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        files = [] if self._test is None else [self._test.data, *(file_hash(path) for path in self._files)]
        told = [list(self._shape), self._classes, list(self._names), self._examples, self._mean, self._std, self._scale]
        return digest({"task": "unseen", "options": told, "test": files})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        if split == "train":
            return build("transfer", "synthesised", {}).loader(self, **how)
        if split not in self.splits():
            raise DataError(f"a task without training data has no {split} split: it has {', '.join(self.splits())}")
        assert self._test is not None
        return Later(self._shelf.loader(split, **how), _BEFORE[self._test.data])

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return ("train",) if self._test is None else ("train", "test")
