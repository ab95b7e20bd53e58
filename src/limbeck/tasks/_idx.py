"""The idx files of MNIST and its kin: a magic number, the sizes as big-endian int32, then the bytes.

http://yann.lecun.com/exdb/mnist: `0x00000803` images `[N, H, W]`, `0x00000801` labels `[N]`, both uint8; gzipped or plain.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

from ._arrays import Arrays, assemble

__all__ = ["idx_files", "read_bytes", "read_idx", "read_mnist"]

_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def read_bytes(path: Path) -> bytes:
    """Read a file whole, unpacked where its name ends in `.gz`; one that is missing, truncated or corrupt is a `DataError` that names it."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            return stream.read()
    except EOFError:
        raise DataError(f"{path} is truncated: its compressed data end too early; download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is corrupt ({error}): download it again") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_idx(path: Path, axes: int) -> npt.NDArray[Any]:
    """Read a uint8 idx file of `axes` axes.

    Raises:
        DataError: another magic number, sizes that do not match the bytes, a truncated or corrupt gzip.
    """
    data = read_bytes(path)
    if len(data) < 4 + 4 * axes:
        raise DataError(f"{path} is truncated: {len(data)} bytes are less than an idx header")
    magic, *sizes = struct.unpack(f">{1 + axes}I", data[: 4 + 4 * axes])
    if magic != 0x0800 + axes:
        raise DataError(f"{path} is no idx file of {axes} axes of bytes: its magic number is 0x{magic:08x}, not 0x{0x0800 + axes:08x}")
    if len(data) - 4 - 4 * axes != math.prod(sizes):
        raise DataError(
            f"{path} holds {len(data) - 4 - 4 * axes} bytes of data; its header says {'x'.join(map(str, sizes))} = {math.prod(sizes)}: it is damaged"
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)


def idx_files(folder: Path, *, test_only: bool = False) -> list[Path]:
    """Return the four files of a folder, gzipped or plain; with `test_only` the two of the test split, whether the others are there or not."""
    found = []
    for stem in _STEMS[2:] if test_only else _STEMS:
        choices = [path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()]
        if not choices:
            raise DataError(f"{folder / stem}.gz is missing: the idx family is four files, {', '.join(f'{name}.gz' for name in _STEMS)}")
        found.append(choices[0])
    return found


def read_mnist(files: list[Path], names: tuple[str, ...]) -> Arrays:
    """Read what `idx_files` found."""
    images, labels, test_images, test_labels = (read_idx(path, axes) for path, axes in zip(files, (3, 1, 3, 1), strict=True))
    return assemble(str(files[0].parent), (images[:, None], labels), (test_images[:, None], test_labels), names=names)
