"""Small data sets in the formats of the real ones."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Callable[..., Path]:
    """Write ROOT/FOLDER/ with `train` and `test` images of 6x5, ten classes in turn; return ROOT."""

    def write(folder: str = "mnist", train: int = 100, test: int = 20, packed: bool = True) -> Path:
        made = np.random.default_rng(0)
        arrays = [made.integers(0, 256, (train, 6, 5)), np.arange(train) % 10, made.integers(0, 256, (test, 6, 5)), np.arange(test) % 10]
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for stem, array in zip(STEMS, arrays, strict=True):
            path = tmp_path / folder / (f"{stem}.gz" if packed else stem)
            path.write_bytes(gzip.compress(idx(array), mtime=0) if packed else idx(array))
        return tmp_path

    return write


@pytest.fixture
def cifar(tmp_path: Path) -> Callable[..., Path]:
    """Write the six batches of CIFAR-10, or the three files of CIFAR-100, as Python 2 keyed pickles; return the folder's parent."""

    def write(kind: int = 10, count: int = 20) -> Path:
        made = np.random.default_rng(kind)
        folder = tmp_path / ("cifar-10-batches-py" if kind == 10 else "cifar-100-python")
        folder.mkdir()

        def dump(name: str, content: dict[bytes, Any]) -> None:
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))

        def data() -> np.ndarray:
            return made.integers(0, 256, (count, 3072), np.uint8)

        if kind == 10:
            for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
                dump(name, {b"batch_label": name.encode(), b"data": data(), b"labels": [k % 10 for k in range(count)], b"filenames": [b"x.png"] * count})
        else:
            for name in ("train", "test"):
                dump(name, {b"data": data(), b"fine_labels": [k % 100 for k in range(count)], b"coarse_labels": [k % 20 for k in range(count)]})
            fine, coarse = [b"fine%d" % k for k in range(100)], [b"coarse%d" % k for k in range(20)]
            dump("meta", {b"fine_label_names": fine, b"coarse_label_names": coarse})
        return tmp_path

    return write
