"""Arrays in an .npz: layouts, and what is refused."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.core.errors import DataError
from limbeck.tasks._npz import read_npz


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


X, Y = np.arange(4 * 8 * 9, dtype=np.uint8).reshape(4, 8, 9), np.array([0, 1, 1, 0])


def test_one_part(tmp_path: Path) -> None:
    arrays = read_npz(write(tmp_path / "a.npz", x=X, y=Y.astype(np.uint8)))
    assert arrays.images.shape == (4, 1, 8, 9) and arrays.tests == 0 and arrays.names == ("0", "1") and arrays.scale == 255
    assert arrays.labels.dtype == np.int64 and arrays.labels.tolist() == [0, 1, 1, 0]


def test_two_parts_floats_and_names(tmp_path: Path) -> None:
    x = X.astype(np.float64) / 7
    arrays = read_npz(write(tmp_path / "a.npz", x_train=x, y_train=Y, x_test=x[:1], y_test=[2], class_names=["ant", "bee", "cow"]))
    assert arrays.images.dtype == np.float32 and arrays.scale == 1 and arrays.tests == 1 and arrays.names == ("ant", "bee", "cow")
    assert np.array_equal(arrays.images[:4, 0], x.astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_and_last_are_told_apart(tmp_path: Path, channels: int) -> None:
    last = np.random.default_rng(0).integers(0, 256, (4, 8, 9, channels), np.uint8)
    a = read_npz(write(tmp_path / "a.npz", x=last, y=Y)).images
    b = read_npz(write(tmp_path / "b.npz", x=last.transpose(0, 3, 1, 2), y=Y)).images
    assert a.shape == (4, channels, 8, 9) and np.array_equal(a, b) and np.array_equal(a[2, channels - 1], last[2, :, :, channels - 1])


NAN = X.astype(np.float32)
NAN = np.where(np.arange(4)[:, None, None] == 2, np.nan, NAN)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": NAN, "y": Y}, "image 2 holds a value that is not finite"),
        ({"x": np.full((4, 8, 9), 1e300), "y": Y}, "not finite"),  # infinite as float32
        ({"x": X, "y": np.array([0, 0, 0, 0])}, r"one class only \(0\)"),
        ({"x": X, "y": np.array([0, 1, 3, 3])}, "no training example of .* has label 2"),
        ({"x": X, "y": np.array([1, 2, 2, 1])}, "no training example of .* has label 0"),
        ({"x": X, "y": np.array([-1, 0, 1, 1])}, "label -1 of example 0"),
        ({"x": X, "y": np.array([-3, -2, -1, -1])}, "has label 0"),
        ({"x": X, "y": Y.astype(float)}, "labels of .* are float64"),
        ({"x": X, "y": Y[:, None]}, r"shape \[4, 1\]"),
        ({"x": X, "y": Y[:3]}, "4 images and 3 labels"),
        ({"x": X[:0], "y": Y[:0]}, "training split of .* is empty"),
        ({"x": X.astype(np.int64), "y": Y}, "holds int64; images are uint8"),
        ({"x": X.reshape(4, 72), "y": Y}, "has shape 4x72"),
        ({"x": np.zeros((4, 3, 8, 3), np.uint8), "y": Y}, "has shape 4x3x8x3"),
        ({"x": np.zeros((4, 8, 9, 4), np.uint8), "y": Y}, "has shape 4x8x9x4"),
        ({"x": X}, "holds x; it must hold x_train"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "it must hold x_train"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "test images of .* are uint8"),
        ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "test split of .* is empty"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, r"label 2 of example 1 in the test split .*: its 2 classes are 0\.\.1"),
        ({"x": X, "y": Y, "class_names": np.array([1, 2])}, "class_names of .* are int64"),
        ({"x": X, "y": Y, "class_names": np.array(["a"])}, "one class only"),
        ({"x": np.array([None]), "y": Y}, "Python objects"),
    ],
)
def test_refused(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read_npz(write(tmp_path / "a.npz", **arrays))
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "flipped", "npy", "zip", "missing"])
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.npz", x=X, y=Y)
    whole = path.read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", "nonsense")
            archive.writestr("y.npy", "nonsense")
    elif kind == "missing":
        path.unlink()
    elif kind == "npy":
        with path.open("wb") as stream:
            np.save(stream, X)
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "flipped": whole[:200] + b"\xff" + whole[201:]}[kind])
    with pytest.raises(DataError, match=r"a\.npz"):
        read_npz(path)
