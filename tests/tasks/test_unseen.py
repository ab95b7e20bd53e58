"""A task without training data: noise to train on, test files alone on disk."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Task

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 5)).astype(np.uint8)
LABELS = (np.arange(12) % 3).astype(np.uint8)


def idx(values: Any) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ROOT/mnist/ with the two test files and nothing else."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return tmp_path


def unseen(**options: Any) -> Task:
    return build("tasks", "unseen", {"in_shape": [1, 4, 5], "classes": 3, "examples": 16, **options})


def test_only_the_test_files_are_needed_and_they_are_preprocessed(root: Path) -> None:
    task = unseen(mean=[0.25], std=[0.5], test={"data": "mnist", "root": str(root)})
    assert task.splits() == ("train", "test")
    batches = list(task.loader("test", batch_size=5).batches(0))
    assert [len(batch["id"]) for batch in batches] == [5, 5, 2]
    x = torch.cat([batch["input"] for batch in batches])
    assert torch.allclose(x, (torch.from_numpy(IMAGES.astype(np.float32))[:, None] / 255 - 0.25) / 0.5, atol=1e-6)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == LABELS.tolist()
    assert torch.cat([batch["id"] for batch in batches]).tolist() == list(range(60_000, 60_012)), "as the image task numbers the rows of MNIST"


def test_the_facts_come_from_the_options_alone() -> None:
    task = unseen(class_names=["a", "b", "c"], mean=[0.25], std=[0.5], test={"root": "/nowhere"})
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.examples, facts.labelled) == ((1, 4, 5), 3, ("a", "b", "c"), 16, False)
    assert facts.preprocess == {"kind": "image", "mode": "L", "size": [4, 5], "scale": 255.0, "mean": [0.25], "std": [0.5]}


def test_training_batches_are_noise_without_a_label(root: Path) -> None:
    task = unseen()
    assert task.splits() == ("train",)
    batches = list(task.loader("train", batch_size=8, seed=3).batches(0))
    assert [set(batch) for batch in batches] == [{"input", "id"}] * 2
    floor = build("transfer", "synthesised", {}).loader(task, batch_size=8, seed=3)
    assert all(torch.equal(one["input"], other["input"]) for one, other in zip(batches, floor.batches(0), strict=True))
    with pytest.raises(DataError, match="has no validation split"):
        task.loader("validation", batch_size=8)


def test_the_fingerprint_is_of_options_and_test_files_not_of_where_they_lie(root: Path, tmp_path: Path) -> None:
    one = unseen(test={"root": str(root)})
    assert one.fingerprint() == unseen(test={"root": str(root / "mnist")}).fingerprint()
    assert one.fingerprint() != unseen(test={"root": str(root)}, mean=[0.1]).fingerprint() != unseen().fingerprint()
    (root / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[::-1].copy()))
    assert one.fingerprint() != unseen(test={"root": str(root)}).fingerprint()


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("x", "y")])
def test_an_npz_gives_its_test_members_alone(names: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "held.npz"
    np.savez(file, **{names[0]: IMAGES, names[1]: LABELS.astype(np.int64)})
    task = unseen(test={"data": "npz", "root": str(file)})
    batch = next(iter(task.loader("test", batch_size=12).batches(0)))
    assert batch["input"].shape == (12, 1, 4, 5) and batch["id"].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"in_shape": []}, RecipeError, "one example's shape"),
        ({"classes": 1}, RecipeError, "2 classes"),
        ({"class_names": ["a"]}, RecipeError, "1 class_names for 3 classes"),
        ({"mean": [0.1, 0.2]}, RecipeError, "1 finite number"),
        ({"std": [0.0]}, RecipeError, "above zero, one for each channel"),
        ({"mean": [float("nan")]}, RecipeError, "1 finite number"),
        ({"scale": 0.0}, RecipeError, "the raw value that means 1.0"),
        ({"test": {"data": "svhn", "root": "."}}, RecipeError, "svhn"),
        ({"test": {"root": "/nowhere"}}, DataError, "t10k-images-idx3-ubyte.gz is missing"),
        ({"test": {"data": "npz", "root": "/nowhere"}}, DataError, "/nowhere"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(options: dict[str, Any], kind: type[LimbeckError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        unseen(**options).loader("test", batch_size=4)
    assert "\n" not in str(caught.value)


def test_a_test_split_that_does_not_fit_is_refused(root: Path) -> None:
    with pytest.raises(MismatchError, match=r"examples of \[1, 4, 5\], and in_shape is \[1, 8, 8\]"):
        unseen(in_shape=[1, 8, 8], test={"root": str(root)}).loader("test", batch_size=4)
    with pytest.raises(DataError, match="labels 0 to 2, and there are 2 classes"):
        unseen(classes=2, test={"root": str(root)}).loader("test", batch_size=4)
