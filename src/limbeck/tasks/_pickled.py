"""A reader of pickles that admits plain containers and numpy arrays of numbers, and runs nothing.

A pickle names what it wants called. Here the five names that rebuild an array, and those that a format adds, stand for inert classes of ours, which write
down what they are given, and any other name is refused before it is looked up. The array is then made from its checked shape, type and bytes: numpy's own
`__setstate__`, which a hostile state can confuse, is never reached. A pickle that would make the reader's own tables larger than the file is refused as well.
"""

import io
import math
import pickle
import pickletools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

from ._idx import read_bytes

__all__ = ["Admitted", "as_array", "read_object", "read_pickle"]

_T = TypeVar("_T")
Admitted = Mapping[tuple[str, str], type]
"""(module, name) as a pickle has it -> the inert class that stands for it, whose `__setstate__` keeps a pickle from setting its attributes."""

_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, MemoryError, OverflowError, RecursionError)


class _Name:
    """`numpy.ndarray`, which is named and never called."""

    def __init__(self) -> None:
        raise ValueError("an array is not made so")

    def __setstate__(self, state: object) -> NoReturn:  # without it a pickle could set attributes
        raise ValueError("nothing to set")


class _Encode:
    """`_codecs.encode(text, "latin1")`: how bytes are written in the old protocols of Python 3."""

    def __new__(cls, text: str, encoding: object) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise ValueError(f"bytes encoded as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> NoReturn:
        raise ValueError("nothing to set")


class _Type:
    """`numpy.dtype(code, align, copy)`, its byte order set afterwards."""

    def __init__(self, code: object, *_flags: object) -> None:
        self.code, self.order = code.decode("latin1") if isinstance(code, bytes) else code, "|"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2:
            raise ValueError("a type without a byte order")
        self.order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]

    def dtype(self) -> "np.dtype[Any]":
        if self.code not in ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8") or self.order not in ("|", "<", ">", "="):
            raise ValueError(f"an array of {self.code!r}, which is no number")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """`numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), "b")`, its content set afterwards as (version, shape, type, fortran, bytes)."""

    def __init__(self, *_args: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> npt.NDArray[Any]:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without content")
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _Type) or not isinstance(content, bytes) or not isinstance(shape, tuple):
            raise ValueError("an array whose content is not bytes")
        dtype = kind.dtype()
        if not all(isinstance(size, int) and size >= 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"an array of shape {shape} with {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


_ADMITTED = {
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Encode,
}


class _ArraysOnly(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, more: Admitted) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._path, self._admitted = path, {**more, **_ADMITTED}

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self._admitted:
            raise DataError(f"{self._path} asks for {module}.{name}: only arrays and plain containers are read from a pickle, and nothing in it was run")
        return self._admitted[module, name]


def _check_opcodes(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"entry {argument} of a table of {len(data)} at most")
        if opcode.name == "BYTEARRAY8":
            raise ValueError("a bytearray")


def as_array(value: object) -> npt.NDArray[Any]:
    """Return an array that was read; what is none is a ValueError, which `read_object` turns into a DataError."""
    if not isinstance(value, _Array):
        raise ValueError(f"a {type(value).__name__} where an array should be")
    return value.array()


def read_object(path: Path, build: Callable[[Any], _T], more: Admitted | None = None) -> _T:
    """Read a pickle and return what `build` makes of its content, whose arrays `as_array` makes.

    Raises:
        DataError: a truncated or corrupt pickle, content that `build` refuses, or a name that is neither an array's nor among `more`.
    """
    try:
        data = read_bytes(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid escape sequence", DeprecationWarning)  # in the text of a damaged file
            _check_opcodes(data)
            found = _ArraysOnly(data, path, more or {}).load()
        return build(found)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{path} is truncated or corrupt ({type(error).__name__}: {error}): download it again") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary whose values are plain containers or arrays, its keys as text.

    Raises:
        DataError: a truncated or corrupt pickle, one that holds no dictionary, or one that asks for anything but arrays of numbers.
    """

    def build(found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise DataError(f"{path} holds a {type(found).__name__}, not a dictionary of arrays")
        named = {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
        return {key: value.array() if isinstance(value, _Array) else value for key, value in named.items()}

    return read_object(path, build)
