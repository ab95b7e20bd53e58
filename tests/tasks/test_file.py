"""A table or images with targets in one `.npz`: splits, normalisation, ids, the fingerprint, and damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Task
from limbeck.tasks.multilabel import MultiLabel
from limbeck.tasks.regression import Regression

MADE = np.random.default_rng(0)
TABLE: dict[str, Any] = {
    "x_train": MADE.normal(3, 5, (40, 6)),
    "y_train": MADE.normal(size=(40, 2)),
    "x_test": MADE.normal(3, 5, (10, 6)),
    "y_test": MADE.normal(size=(10, 2)),
}


def kept(path: Path, **changed: Any) -> str:
    np.savez(path / "data.npz", **{name: value for name, value in {**TABLE, **changed}.items() if value is not None})
    return str(path / "data.npz")


def rows(task: Task, split: Any) -> list[int]:
    return [int(one) for batch in task.loader(split, batch_size=7).batches(0) for one in batch["id"]]


def test_a_table_is_split_and_normalised_over_its_training_rows(tmp_path: Path) -> None:
    task = Regression(root=kept(tmp_path), validation=0.25)
    assert task.splits() == ("train", "validation", "test")
    train, validation = (
        {one for epoch in range(9) for b in task.loader("train", batch_size=7).batches(epoch) for one in b["id"].tolist()},
        rows(task, "validation"),
    )
    assert len(validation) == 10 and train == set(range(40)) - set(validation) and rows(task, "test") == list(range(40, 50))
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.examples) == ((6,), 2, 30) and facts.preprocess["kind"] == "table"
    mean, std = TABLE["x_train"][sorted(train)].mean(0), TABLE["x_train"][sorted(train)].std(0)
    batch = next(iter(task.loader("test", batch_size=10).batches(0)))
    np.testing.assert_allclose(batch["input"].numpy(), (TABLE["x_test"] - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch["label"].numpy(), TABLE["y_test"], rtol=1e-6)
    assert torch.equal(
        next(iter(Regression(root=kept(tmp_path), normalize=False).loader("test", batch_size=10).batches(0)))["input"], torch.tensor(TABLE["x_test"]).float()
    )


def test_images_are_as_the_image_task_has_them(tmp_path: Path) -> None:
    images, labels = MADE.integers(0, 256, (20, 5, 4), dtype=np.uint8), MADE.integers(0, 2, (20, 3))
    path = kept(tmp_path, x_train=images, y_train=labels, x_test=None, y_test=None, class_names=np.array(["a", "b", "c"]))
    task = MultiLabel(root=path, validation=0)
    assert task.splits() == ("train",)
    facts = task.facts()
    assert (facts.in_shape, facts.class_names, facts.preprocess["size"], facts.preprocess["scale"]) == ((1, 5, 4), ("a", "b", "c"), [5, 4], 255.0)
    batch = next(iter(task.loader("train", batch_size=20).batches(0)))
    raw = images[batch["id"].numpy(), None] / 255
    np.testing.assert_allclose(batch["input"].numpy(), (raw - (images / 255).mean()) / (images / 255).std(), rtol=1e-4, atol=1e-5)
    assert torch.equal(batch["label"], torch.tensor(labels)[batch["id"]].float())
    with pytest.raises(DataError, match="no test split: store x_test"):
        task.loader("test", batch_size=1)


def test_the_fingerprint_is_the_file_s_and_the_options(tmp_path: Path) -> None:
    path = kept(tmp_path)
    (tmp_path / "moved").mkdir()
    same = Regression(root=path).fingerprint()
    assert Regression(root=kept(tmp_path / "moved")).fingerprint() == same
    others = [
        Regression(root=path, split_seed=1),
        Regression(root=path, validation=0.2),
        MultiLabel(root=path),
        Regression(root=kept(tmp_path, x_test=TABLE["x_test"] + 1)),
    ]
    assert same not in (found := [one.fingerprint() for one in others]) and len(set(found)) == 4


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x_test": TABLE["x_test"][:, :5]}, "float32.6. and float32.5.: both must be the same"),
        ({"y_test": TABLE["y_test"][:, :1]}, "2 and 1 targets"),
        ({"y_train": TABLE["y_train"][:39]}, r"y_train of .*\[39, 2\]; it must be a tensor \[40, D\]"),
        ({"y_train": np.full((40, 2), np.nan)}, "y_train of .* example 0 .* not finite"),
        ({"x_train": np.where(np.arange(40)[:, None] == 3, np.inf, TABLE["x_train"])}, "image 3 holds a value that is not finite|example 3"),
        ({"x_train": TABLE["x_train"][:0], "y_train": TABLE["y_train"][:0]}, "x_train of .* is empty"),
        ({"x_train": np.full((40, 6), "a")}, "a table holds numbers"),
        ({"y_train": np.full((40, 2), "a")}, "y_train of"),
        ({"x_train": TABLE["x_train"][:, 0]}, "has shape 40"),
        ({"class_names": np.array(["a"])}, "names 1 classes and has 2 targets"),
        ({"y_test": None}, "it must hold x_train, y_train"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        Regression(root=kept(tmp_path, **changed)).facts()
    assert "\n" not in str(caught.value)


def test_no_file_and_no_share(tmp_path: Path) -> None:
    for ask in (Regression.facts, Regression.fingerprint):
        with pytest.raises(DataError, match="cannot read"):
            ask(Regression(root=str(tmp_path / "none.npz")))
    with pytest.raises(RecipeError, match="validation is 1"):
        Regression(root="a.npz", validation=1.0)
