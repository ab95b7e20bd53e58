"""Images and labels in one `.npz`: x_train, y_train, x_test and y_test, or x and y; class_names where they are there."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

from ._arrays import Arrays, as_nchw, assemble

__all__ = ["read_array_file", "read_members", "read_npz"]

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, OSError, SyntaxError)


def read_array_file(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an `.npz`, or the one array of an `.npy` under the name `x`; arrays of Python objects are refused, not unpickled."""
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            found = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except _BROKEN as error:
        raise DataError(f"cannot read {path} as plain numpy arrays ({error}): it is missing, truncated, corrupt, or holds Python objects") from None
    for key, value in found.items():
        if not isinstance(value, np.ndarray):
            raise DataError(f"cannot read {path}: its member {key} is no numpy array")
    return found


def read_members(path: Path) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...] | None]:
    """Read the arrays of a data set, and the names of its classes where they are there; refuse one with other members than a data set has."""
    found = read_array_file(path)
    keys = found.keys() - {"class_names"}
    if keys not in ({"x", "y"}, {"x_train", "y_train"}, {"x_train", "y_train", "x_test", "y_test"}):
        raise DataError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}; it must hold x_train, y_train, x_test and y_test, or x and y (and class_names, if any)"
        )
    names = None
    if "class_names" in found:
        given = found["class_names"]
        if given.ndim != 1 or given.dtype.kind not in "US":
            raise DataError(f"class_names of {path} are {given.dtype} of shape {list(given.shape)}; give text of shape [C]")
        names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in given.tolist())
    return found, names


def read_npz(path: Path) -> Arrays:
    """Read a data set of images."""
    found, names = read_members(path)

    def split(suffix: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        images, labels = found[f"x{suffix}"], found[f"y{suffix}"]
        return as_nchw(images, f"x{suffix} of {path}"), labels

    if "x" in found:
        return assemble(str(path), split(""), names=names)
    return assemble(str(path), split("_train"), split("_test") if "x_test" in found else None, names=names)
