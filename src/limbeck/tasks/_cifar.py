"""CIFAR-10 and CIFAR-100 as their python pickles.

https://www.cs.toronto.edu/~kriz/cifar.html: a dictionary whose `data [N, 3072]` is uint8, red, green and blue planes of 32x32 in turn.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

from ._arrays import Arrays, assemble
from ._pickled import read_pickle

__all__ = ["CIFAR10", "CIFAR100", "read_cifar10", "read_cifar100"]

CIFAR10 = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
CIFAR100 = ("train", "test", "meta")
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _field(found: dict[str, Any], key: str, path: Path) -> Any:
    if key not in found:
        raise DataError(f"{path} has no {key!r}; it holds {', '.join(sorted(map(str, found)))}")
    return found[key]


def _images_labels(path: Path, key: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    found = read_pickle(path)
    data, labels = _field(found, "data", path), _field(found, key, path)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"the data of {path} are not a uint8 array of shape [N, 3072]")
    if isinstance(labels, list) and all(isinstance(label, int) for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray) or len(labels) != len(data):
        raise DataError(f"{path} has {len(data)} images, and {key} is no list of as many whole numbers")
    return data.reshape(-1, 3, 32, 32), labels


def read_cifar10(files: list[Path]) -> Arrays:
    """Read the five training batches and the test batch."""
    *batches, test = (_images_labels(path, "labels") for path in files)
    train = np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])
    return assemble(str(files[0].parent), train, test, names=_NAMES)


def read_cifar100(files: list[Path], labels: str) -> Arrays:
    """Read the training and the test pickle with `fine` or `coarse` labels, and the class names from `meta`."""
    train, test, meta = files
    names = _field(read_pickle(meta), f"{labels}_label_names", meta)
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        raise DataError(f"{labels}_label_names of {meta} is no list of names")
    key = f"{labels}_labels"
    return assemble(str(train.parent), _images_labels(train, key), _images_labels(test, key), names=tuple(map(_text, names)))
