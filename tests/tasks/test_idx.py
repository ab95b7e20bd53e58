"""The idx family: what is read, and what is refused."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limbeck.core.errors import DataError
from limbeck.tasks._idx import idx_files, read_idx, read_mnist


@pytest.mark.parametrize("packed", [True, False])
def test_read(mnist: Callable[..., Path], packed: bool) -> None:
    arrays = read_mnist(idx_files(mnist(packed=packed) / "mnist"), tuple("0123456789"))
    assert arrays.images.shape == (120, 1, 6, 5) and arrays.images.dtype == np.uint8
    assert arrays.tests == 20 and arrays.scale == 255
    assert arrays.labels.tolist() == [k % 10 for k in range(100)] + [k % 10 for k in range(20)]
    made = np.random.default_rng(0)
    assert np.array_equal(arrays.images[:100, 0], made.integers(0, 256, (100, 6, 5)))


IMAGES = struct.pack(">4I", 0x0803, 2, 3, 3) + bytes(18)
PACKED = gzip.compress(IMAGES, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.gz", PACKED[:-9], "truncated"),
        ("a.gz", PACKED[:4], "truncated"),
        ("a.gz", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "corrupt"),  # the checksum
        ("a.gz", PACKED[:12] + b"\xff" * 8 + PACKED[20:], "corrupt|truncated"),
        ("a.gz", IMAGES, "corrupt"),  # not gzipped
        ("a.gz", b"", "truncated"),
        ("a", b"\0\0\x08", "truncated"),
        ("a", struct.pack(">2I", 0x0801, 5) + bytes(50), "magic number is 0x00000801, not 0x00000803"),
        ("a", IMAGES[:-1], r"holds 17 bytes of data; its header says 2x3x3 = 18"),
        ("a", IMAGES + b"\0", "holds 19 bytes"),
        ("a", struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(mnist: Callable[..., Path]) -> None:
    folder = mnist() / "mnist"
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        idx_files(folder)


def test_counts_and_labels_are_checked(mnist: Callable[..., Path]) -> None:
    folder = mnist() / "mnist"
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(struct.pack(">2I", 0x0801, 99) + bytes(99)))
    with pytest.raises(DataError, match=r"training split of .* has 100 images and 99 labels"):
        read_mnist(idx_files(folder), tuple("0123456789"))
    labels.write_bytes(gzip.compress(struct.pack(">2I", 0x0801, 100) + bytes(99) + b"\x0a"))
    with pytest.raises(DataError, match=r"label 10 of example 99 in the training split .* out of range: its 10 classes are 0\.\.9"):
        read_mnist(idx_files(folder), tuple("0123456789"))
