"""Classification of images that fit in memory: digits, MNIST and its kin, CIFAR, an npz, a folder of files."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple, Unpack, get_args

import torch
from pydantic import TypeAdapter, ValidationError

from limbeck.core.errors import DataError, RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.task import Facts, How, Loader, Split, Task

from ._arrays import Arrays
from ._as_plain import AsPlain
from ._augment import Augmentation, Crop, Flip, Shift, check_reach
from ._cifar import CIFAR10, CIFAR100, read_cifar10, read_cifar100
from ._digits import digits_file, read_digits
from ._edges import edges
from ._fingerprint import files_hash
from ._folder import find_images, read_folder
from ._idx import idx_files, read_mnist
from ._memory import Held, Norm, Shelf
from ._npz import read_npz
from ._preprocess import prepare, statistics
from ._split import Splitting
from .classify import Classify

__all__ = ["Augmentation", "Crop", "Flip", "Image", "Shift", "prepare"]

Data = Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "npz", "folder"]
_FOLDERS = {"mnist": "mnist", "fashion-mnist": "fashion-mnist", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_FLOAT_BYTES = 4 << 30
"""Images that would take more than this as float32 are kept as they were stored, and normalised batch by batch."""


class _Source(NamedTuple):
    """The files of a data set, by a name that does not depend on where they lie, and how to read them."""

    files: dict[str, Path]
    read: Callable[[], Arrays]


class Image(AsPlain):
    """Classification of images that fit in memory.

    They are held as one tensor `[M, C, H, W]`, normalised once to `(raw / scale - mean) / std` with each channel's mean and deviation over the training split,
    and batched by index on the fly. Above 4 GiB of float32 they stay as stored (uint8: a quarter of it) and each batch is normalised as it is made, with the
    same result to the bit. A batch is `input [N, C, H, W]` float32, `label [N]` and `id [N]` int64; an id is the example's row: the training files' first,
    then those of the test split.

    Splits: `test` is the data's own test split, or fold number `fold` where it has none; `validation` is carved from the rest, and `train` is what is left.

    Args:
        data: digits (packed in scikit-learn), mnist, fashion-mnist, cifar10, cifar100, npz (x_train, y_train, x_test, y_test, or x, y) or folder
            (of image files by class).
        root: the folder that holds the data set's own folder (mnist, fashion-mnist, cifar-10-batches-py, cifar-100-python) or its files; the .npz itself;
            the folder with train/CLASS/* (and test/CLASS/*) or CLASS/*.
        validation: the fraction of the training data held back for validation, the same mix of classes; 0 for none.
        folds: in how many folds data without a test split are cut.
        fold: which of the folds, from 0, is the test split.
        split_seed: the seed of folds, validation and subset.
        subset: how many training examples to use, the first of a seeded order; all where it is not given.
        augment: what is done to training images, in this order: {kind: shift, pixels}, {kind: crop, padding}, {kind: flip}.
        normalize: bring each channel to mean 0 and deviation 1; else values are only divided by `scale`.
        class_weight: balanced (n / (classes * n_c), whose mean over the training split is 1), or one weight for each class, for the loss.
        size: height and width to which image files are brought, for a folder of images of several sizes.
        labels: fine or coarse labels of cifar100.
        render: edges, in the place of each image the size of its gradient (Sobel), as a second modality of the same examples.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing or damaged, an empty split, a single class, labels out of range, values that are not finite.
    """

    def __init__(
        self,
        *,
        data: Data = "digits",
        root: str | None = None,
        validation: float = 0.1,
        folds: int = 5,
        fold: int = 0,
        split_seed: int = 0,
        subset: int | None = None,
        augment: Sequence[Augmentation] = (),
        normalize: bool = True,
        class_weight: Literal["balanced"] | list[float] | None = None,
        size: int | None = None,
        labels: Literal["fine", "coarse"] = "fine",
        render: Literal["edges"] | None = None,
    ) -> None:
        if data not in get_args(Data):
            raise RecipeError(f"no data {data!r} for tasks.image{did_you_mean(data, get_args(Data))}")
        if data == "digits" and root is not None:
            raise RecipeError(f"root is {root!r}, and data 'digits' comes with scikit-learn: leave root out, or choose other data")
        if data != "digits" and not root:
            raise RecipeError(f"data {data!r} needs `root`: {'the .npz file' if data == 'npz' else 'the folder that holds the data'}")
        self._splitting = Splitting(validation=validation, folds=folds, fold=fold, seed=split_seed, subset=subset)
        if size is not None and (data != "folder" or size < 1):
            raise RecipeError(f"size is {size} for data {data!r}; it is a number of pixels, 1 or more, and only for data 'folder'")
        if labels not in ("fine", "coarse") or (labels == "coarse" and data != "cifar100"):
            raise RecipeError(f"labels is {labels!r} for data {data!r}; cifar100 has fine and coarse labels, other data have one kind")
        if render not in (None, "edges"):
            raise RecipeError(f"render is {render!r} for tasks.image; it is 'edges', or left out")
        if isinstance(class_weight, str) and class_weight != "balanced":
            raise RecipeError(f"class_weight is {class_weight!r}; it is 'balanced', one weight for each class, or nothing")
        try:
            self._augment: list[Shift | Crop | Flip] = TypeAdapter(list[Augmentation]).validate_python(list(augment))
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(f"augment.{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}") from None
        self._data: Data = data
        self._root = Path(root or ".")
        self._normalize, self._size, self._fine, self._render = normalize, size, labels, render
        self._balanced = isinstance(class_weight, str)
        self._weights = None if isinstance(class_weight, str) else class_weight
        Classify(class_weight=self._weights)  # says what is wrong with them

    @cached_property
    def _source(self) -> _Source:
        if self._data == "digits":
            return _Source({"digits": digits_file()}, partial(read_digits, digits_file()))
        if self._data == "npz":
            if not self._root.is_file():
                raise DataError(f"{self._root} is no file: for data 'npz' `root` is the .npz itself")
            return _Source({"npz": self._root}, partial(read_npz, self._root))
        if self._data == "folder":
            tree = find_images(self._root)
            return _Source({path.relative_to(self._root).as_posix(): path for path in tree.files}, partial(read_folder, tree, self._size))
        inner = self._root / _FOLDERS[self._data]
        folder = inner if inner.is_dir() else self._root
        if not folder.is_dir():
            raise DataError(f"{self._root} is no folder: set `root` to the folder that holds {inner.name}/")
        if self._data in ("mnist", "fashion-mnist"):
            files = idx_files(folder)
            names = _FASHION if self._data == "fashion-mnist" else tuple("0123456789")
            return _Source({path.name: path for path in files}, partial(read_mnist, files, names))
        stems = CIFAR10 if self._data == "cifar10" else CIFAR100
        files = [folder / stem for stem in stems]
        for path in files:
            if not path.is_file():
                raise DataError(f"{path} is missing: {self._data} is the files {', '.join(stems)} in ROOT/{inner.name}/")
        return _Source(
            {path.name: path for path in files}, partial(read_cifar10, files) if self._data == "cifar10" else partial(read_cifar100, files, self._fine)
        )

    @cached_property
    def _loaded(self) -> tuple[Facts, Shelf]:
        arrays = self._source.read()
        if self._weights is not None and len(self._weights) != len(arrays.names):
            raise RecipeError(f"class_weight has {len(self._weights)} weights, and data {self._data!r} have {len(arrays.names)} classes: give one for each")
        labels = torch.from_numpy(arrays.labels)
        rows = self._splitting.rows(labels, arrays.tests, own=f"data {self._data!r} in {self._root} have one")
        _, channels, height, width = arrays.images.shape
        check_reach(self._augment, height, width)
        raw = torch.from_numpy(arrays.images if self._render is None else edges(arrays.images, arrays.scale))
        mean, std = statistics(raw, rows["train"], arrays.scale) if self._normalize else ([0.0] * channels, [1.0] * channels)
        preprocess = {
            "kind": self._render or "image", "mode": "L" if channels == 1 else "RGB", "size": [height, width], "scale": arrays.scale, "mean": mean, "std": std,
        }  # fmt: skip
        norm = Norm(arrays.scale, torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1))
        if raw.numel() * 4 <= _FLOAT_BYTES:
            fill = norm(torch.zeros(1, channels, 1, 1)).view(-1)
            held = Held(norm(raw), labels, fill, None)
        else:
            held = Held(raw, labels, torch.zeros(channels, dtype=raw.dtype), norm)
        facts = Facts((channels, height, width), len(arrays.names), arrays.names, len(rows["train"]), preprocess=preprocess)
        return facts, Shelf(held, rows, augment=self._augment)

    @cached_property
    def _plain(self) -> Classify:
        if not self._balanced:
            return Classify(class_weight=self._weights)
        facts, shelf = self._loaded
        counts = shelf.held.labels[shelf.rows["train"]].bincount(minlength=facts.classes).double()
        balanced = torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)
        return Classify(class_weight=balanced.tolist())

    def facts(self) -> Facts:
        return self._loaded[0]

    def fingerprint(self) -> str:
        """The SHA-256 of the files' own and of every option that says what is made of them; where the files lie does not matter, nor do weights of the loss."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        options = [self._data, *self._splitting.options, self._normalize, self._size, self._fine]
        options += [] if self._render is None else [self._render]
        steps = [step.model_dump() for step in self._augment]
        return digest({"task": "image", "options": options, "augment": steps, "files": files_hash(self._source.files)})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        return self._loaded[1].loader(split, **how)

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return self._splitting.splits()
