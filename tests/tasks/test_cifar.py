"""CIFAR-10 and CIFAR-100 from their pickles: planes, labels, names, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.core.errors import DataError
from limbeck.tasks._cifar import CIFAR10, CIFAR100, read_cifar10, read_cifar100


def test_cifar10(cifar: Callable[..., Path]) -> None:
    folder = cifar(10) / "cifar-10-batches-py"
    arrays = read_cifar10([folder / name for name in CIFAR10])
    assert arrays.images.shape == (120, 3, 32, 32) and arrays.tests == 20
    assert arrays.names[3] == "cat" and len(arrays.names) == 10
    made = np.random.default_rng(10)
    first = made.integers(0, 256, (20, 3072), np.uint8)
    assert arrays.images[4, 2, 5, 7] == first[4, 2 * 1024 + 5 * 32 + 7]  # planes red, green, blue, row by row


@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100(cifar: Callable[..., Path], labels: str, classes: int) -> None:
    folder = cifar(100, count=40) / "cifar-100-python"
    arrays = read_cifar100([folder / name for name in CIFAR100], labels)
    assert arrays.images.shape == (80, 3, 32, 32) and arrays.tests == 40
    assert arrays.names == tuple(f"{labels}{k}" for k in range(classes))
    assert arrays.labels[:40].tolist() == [k % classes for k in range(40)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({b"labels": [0]}, "has no 'data'; it holds labels"),
        ({b"data": np.zeros((1, 3072), np.float32), b"labels": [0]}, "not a uint8 array"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]}, "not a uint8 array"),
        ({b"data": [[0] * 3072], b"labels": [0]}, "not a uint8 array"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "2 images"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["a"]}, "no list of as many whole numbers"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, "label 10 of example 20"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}, "label -1 of example 20"),
    ],
)
def test_content_is_checked(cifar: Callable[..., Path], content: Any, told: str) -> None:
    folder = cifar(10) / "cifar-10-batches-py"
    (folder / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=told):
        read_cifar10([folder / name for name in CIFAR10])
