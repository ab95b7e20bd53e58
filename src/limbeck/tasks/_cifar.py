"""CIFAR-10 and CIFAR-100 as their python pickles, through a reader that admits arrays only.

https://www.cs.toronto.edu/~kriz/cifar.html: a dictionary whose `data [N, 3072]` is uint8, red, green and blue planes of 32x32 in turn.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError
from ._arrays import Arrays, assemble
from ._idx import read_bytes

__all__ = ["CIFAR10", "CIFAR100", "read_cifar10", "read_cifar100", "read_pickle"]

CIFAR10 = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
CIFAR100 = ("train", "test", "meta")
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, MemoryError, OverflowError)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that looks up nothing but what rebuilds a numpy array; whatever else a pickle names is refused before it is looked up."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ADMITTED:
            raise DataError(f"{self._path} asks for {module}.{name}: only arrays and plain containers are read from a pickle, and nothing in it was run")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays and plain containers, its keys as text.

    Raises:
        DataError: a truncated or corrupt pickle, one that holds no dictionary, or one that asks for anything but arrays.
    """
    try:
        with warnings.catch_warnings():
            # What Python 2 pickled says align=0; numpy 2.4 would rather read a bool.
            warnings.filterwarnings("ignore", r"dtype\(\): align should be passed as Python or NumPy boolean but got `align=0`")
            found = _ArraysOnly(read_bytes(path), path).load()
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{path} is truncated or corrupt ({type(error).__name__}: {error}): download it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, not the dictionary of a CIFAR file")
    return {_text(key): value for key, value in found.items()}


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
