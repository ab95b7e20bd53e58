"""The image task: its data sets, splits, statistics and fingerprint, and the options that cannot be meant."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from limbeck.core.errors import DataError, LimbeckError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build, find, options
from limbeck.tasks import image
from limbeck.tasks.image import Crop, Flip, Image, Shift


def everything(task: Image) -> dict[str, set[int]]:
    return {split: {int(i) for batch in task.loader(split, batch_size=1).batches(0) for i in batch["id"]} for split in task.splits()}


def test_digits_equal_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    wanted: Any = load_digits()
    task = Image(validation=0, normalize=False)
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.labelled) == ((1, 8, 8), 10, tuple("0123456789"), True)
    seen = 0
    for split in task.splits():
        for batch in task.loader(split, batch_size=1).batches(0):
            row = int(batch["id"])
            assert batch["label"].item() == wanted.target[row]
            assert np.array_equal(batch["input"][0, 0].numpy() * 16, wanted.images[row])
            seen += 1
    assert seen == 1797


def test_every_digit_is_out_of_fold_once() -> None:
    tests = [everything(Image(fold=fold))["test"] for fold in range(5)]
    assert sum(map(len, tests)) == 1797 == len(set.union(*tests))


def test_splits_part_the_data() -> None:
    task = Image()
    parts = everything(task)
    assert list(parts) == ["train", "validation", "test"]
    assert sum(map(len, parts.values())) == 1797 == len(set.union(*parts.values()))
    assert task.facts().examples == len(parts["train"]) == 1294 - 1 and len(parts["validation"]) == 144
    assert list(everything(Image(validation=0))) == ["train", "test"]
    assert everything(Image(split_seed=1))["test"] != parts["test"]
    small = everything(Image(subset=100))
    assert len(small["train"]) == 100 and small["train"] < parts["train"] and small["test"] == parts["test"] and small["validation"] == parts["validation"]


@pytest.mark.parametrize("subset", [None, 50])
def test_statistics_are_of_the_training_split_alone(subset: int | None) -> None:
    task = Image(subset=subset)
    count = task.facts().examples
    (batch,) = task.loader("train", batch_size=count).batches(0)
    assert batch["input"].double().mean().abs() < 1e-6 and abs(batch["input"].double().std(correction=0) - 1) < 1e-6
    (other,) = task.loader("test", batch_size=1000).batches(0)
    assert other["input"].double().mean().abs() > 1e-4
    told = task.facts().preprocess
    (raw,) = Image(subset=subset, normalize=False).loader("train", batch_size=count).batches(0)
    assert torch.allclose((raw["input"] - told["mean"][0]) / told["std"][0], batch["input"], atol=1e-6)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_in_its_folder_or_in_root(mnist: Callable[..., Path], nested: bool, packed: bool) -> None:
    root = mnist(packed=packed)
    task = Image(data="mnist", root=str(root if nested else root / "mnist"))
    assert task.facts().in_shape == (1, 6, 5) and task.facts().examples == 90
    parts = everything(task)
    assert parts["test"] == set(range(100, 120)) and parts["train"] | parts["validation"] == set(range(100))


def test_the_zero_that_is_shifted_in_is_the_raw_zero(mnist: Callable[..., Path]) -> None:
    task = Image(data="mnist", root=str(mnist()), augment=[Shift(pixels=4)])
    told = task.facts().preprocess
    zero = torch.tensor((0 - told["mean"][0]) / told["std"][0])
    edges = torch.stack([batch["input"][0, 0, 0] for batch in task.loader("train", batch_size=1).batches(0)])
    assert (edges - zero).abs().lt(1e-6).all(1).any()  # a row shifted in
    assert edges.min() >= zero - 1e-6  # and nothing is darker than raw zero


def test_fashion_names(mnist: Callable[..., Path]) -> None:
    assert Image(data="fashion-mnist", root=str(mnist("fashion-mnist"))).facts().class_names[9] == "Ankle boot"


@pytest.mark.parametrize(("data", "kind", "labels", "classes"), [("cifar10", 10, "fine", 10), ("cifar100", 100, "fine", 100), ("cifar100", 100, "coarse", 20)])
def test_cifar(cifar: Callable[..., Path], data: Any, kind: int, labels: Any, classes: int) -> None:
    task = Image(data=data, root=str(cifar(kind, count=200)), labels=labels, augment=[Crop(padding=4), Flip()])
    facts = task.facts()
    assert facts.in_shape == (3, 32, 32) and facts.classes == classes and facts.preprocess["mode"] == "RGB"
    assert len(everything(task)["test"]) == 200
    assert next(task.loader("train", batch_size=8).batches(0))["input"].shape == (8, 3, 32, 32)


def test_npz_and_folder(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 7, 3), np.uint8)
    y = np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y, class_names=["no", "yes"])
    for k in range(40):
        path = tmp_path / "tree" / ("no", "yes")[k % 2] / f"{k // 2:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(x[k]).save(path)
    a = Image(data="npz", root=str(tmp_path / "a.npz"), validation=0, normalize=False)
    b = Image(data="folder", root=str(tmp_path / "tree"), validation=0, normalize=False)
    assert a.facts() == b.facts() and a.facts().class_names == ("no", "yes")
    images = [
        {
            tuple(i.flatten().tolist()): int(label)
            for s in t.splits()
            for d in t.loader(s, batch_size=1).batches(0)
            for i, label in zip(d["input"], d["label"], strict=True)
        }
        for t in (a, b)
    ]
    assert images[0] == images[1] and len(images[0]) == 40
    assert Image(data="folder", root=str(tmp_path / "tree"), size=4).facts().in_shape == (3, 4, 4)


def test_large_data_stay_bytes_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, large = Image(augment=[Shift(pixels=1)]), Image(augment=[Shift(pixels=1)])
    monkeypatch.setattr(image, "_FLOAT_BYTES", 1000)
    loader = large.loader("train", batch_size=64)
    monkeypatch.undo()
    assert large._loaded[1].held.images.dtype == torch.uint8 and usual._loaded[1].held.images.dtype == torch.float32
    for a, b in zip(loader.batches(1), usual.loader("train", batch_size=64).batches(1), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_device_holds_the_data_once() -> None:
    task = Image()
    task.loader("train", batch_size=8, device=torch.device("meta"))
    held = task._loaded[1]._on[torch.device("meta")]
    task.loader("test", batch_size=8, device=torch.device("meta"))
    assert task._loaded[1]._on[torch.device("meta")] is held and held.images.is_meta


def test_it_asks_and_scores_as_classification_does() -> None:
    task = Image()
    (batch, *_) = task.loader("test", batch_size=16).batches(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    said = task.forward(model, task.batch(batch))
    assert torch.equal(task.loss(said, batch), torch.nn.functional.cross_entropy(model(batch["input"]), batch["label"], reduction="none"))
    assert set(task.scores(said, batch)) == {"accuracy", "loss"} and task.metric == "accuracy"


def test_balanced_weights_have_mean_one_over_the_training_split(tmp_path: Path) -> None:
    y = np.array([0] * 70 + [1] * 20 + [2] * 10)
    np.savez(
        tmp_path / "a.npz", x_train=np.random.default_rng(0).random((100, 4, 4)), y_train=y, x_test=np.zeros((1, 4, 4)), y_test=[0], class_names=list("abcd")
    )
    task = Image(data="npz", root=str(tmp_path / "a.npz"), class_weight="balanced")
    (batch,) = task.loader("train", batch_size=90).batches(0)
    logits = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    weights = task.loss(Knowledge({"main": Dense(logits)}), batch) / plain
    counts = batch["label"].bincount()
    assert counts.tolist() == [63, 18, 9]
    assert abs(float(weights.mean()) - 1) < 1e-6
    sums = torch.zeros(3).index_add_(0, batch["label"], weights)
    assert torch.allclose(sums, torch.full((3,), 30.0))  # every class that is there weighs the same
    given = Image(data="npz", root=str(tmp_path / "a.npz"), class_weight=[1.0, 2.0, 3.0, 4.0])
    assert torch.allclose(given.loss(Knowledge({"main": Dense(logits)}), batch), plain * (batch["label"] + 1))
    with pytest.raises(RecipeError, match="class_weight has 3 weights, and data 'npz' have 4 classes"):
        Image(data="npz", root=str(tmp_path / "a.npz"), class_weight=[1.0, 2.0, 3.0]).facts()


def test_fingerprint_says_what_the_data_are(mnist: Callable[..., Path], tmp_path: Path) -> None:
    root = mnist()
    base = Image(data="mnist", root=str(root))
    assert base.fingerprint() == base.fingerprint() and len(base.fingerprint()) == 64
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (root / "mnist").rename(moved / "mnist")
    assert Image(data="mnist", root=str(moved)).fingerprint() == base.fingerprint()  # not where they lie
    assert Image(data="mnist", root=str(moved), class_weight="balanced").fingerprint() == base.fingerprint()  # nor what the loss makes of them
    steps = [Shift(pixels=1), Shift(pixels=2), Crop(padding=2)]
    changed: list[dict[str, Any]] = [{"validation": 0.2}, {"split_seed": 1}, {"subset": 50}, {"normalize": False}, *({"augment": [step]} for step in steps)]
    found = {base.fingerprint()} | {Image(data="mnist", root=str(moved), **each).fingerprint() for each in changed}
    assert len(found) == 1 + len(changed)
    file = moved / "mnist" / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert Image(data="mnist", root=str(moved)).fingerprint() not in found


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, limbeck.tasks.image as i; t = i.Image(); t.fingerprint(); t.facts(); "
        "assert not {'sklearn', 'PIL', 'scipy'} & set(sys.modules), sorted({'sklearn', 'PIL', 'scipy'} & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recipe_finds_it_and_its_options() -> None:
    assert find("tasks", "image") is Image
    assert all(option.doc for option in options(Image).values())
    task = build("tasks", "image", {"augment": [{"kind": "shift", "pixels": 1}, {"kind": "flip"}], "class_weight": "balanced"})
    assert task._augment == [Shift(pixels=1), Flip()] and task.facts().classes == 10
    assert Image(augment=[{"kind": "shift", "pixels": 1}])._augment == [Shift(pixels=1)]  # pyright: ignore[reportArgumentType]
    for values, told in (
        ({"augment": [{"kind": "shfit"}]}, "augment.0"),
        ({"augment": [{"kind": "shift", "pixel": 1}]}, "pixel"),
        ({"data": "fashon"}, "fashion-mnist"),
    ):
        with pytest.raises(RecipeError, match=told):
            build("tasks", "image", values)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"data": "fashion-mnst", "root": "x"}, "did you mean 'fashion-mnist'"),
        ({"data": "mnist"}, "data 'mnist' needs `root`"),
        ({"root": "x"}, "leave root out"),
        ({"validation": 1.0}, "validation is 1;"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"folds": 1}, "fold is 0 of 1 folds"),
        ({"fold": 5}, "fold is 5 of 5 folds"),
        ({"fold": -1}, "fold is -1"),
        ({"subset": 0}, "subset is 0"),
        ({"size": 8}, "size is 8 for data 'digits'"),
        ({"data": "folder", "root": "x", "size": 0}, "size is 0"),
        ({"labels": "coarse"}, "labels is 'coarse' for data 'digits'"),
        ({"class_weight": "balance"}, "class_weight is 'balance'"),
        ({"class_weight": [1.0] * 9 + [-1.0]}, "finite numbers of zero or more"),
        ({"augment": [{"kind": "shift", "pixels": 0}]}, "pixels: Input should be greater than or equal to 1"),
    ],
)
def test_options_that_cannot_be_meant(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        Image(**given)
    assert "\n" not in str(caught.value)


def test_data_that_cannot_be_used(mnist: Callable[..., Path], cifar: Callable[..., Path], tmp_path: Path) -> None:
    root = str(mnist())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": "mnist", "root": str(tmp_path / "nowhere")}, "is no folder: set `root` to the folder that holds mnist/"),
        ({"data": "fashion-mnist", "root": str(tmp_path / "nothing")}, "train-images-idx3-ubyte.gz is missing"),
        ({"data": "cifar10", "root": str(tmp_path / "nothing")}, "data_batch_1 is missing"),
        ({"data": "npz", "root": root}, "is no file"),
        ({"data": "mnist", "root": root, "fold": 1}, "folds and fold are for data without a test split"),
        ({"data": "mnist", "root": root, "augment": [Shift(pixels=5)]}, "out of sight"),
        ({"subset": 1294}, "subset is 1294, and the training split has 1293 examples"),
        ({"data": "mnist", "root": root, "validation": 0.001}, "is none"),
    ]
    (tmp_path / "nothing").mkdir()
    for given, told in cases:
        with pytest.raises(LimbeckError, match=told):
            Image(**given).facts()
    with pytest.raises(DataError, match="batch_size is 91, and the training split has 90"):
        Image(data="mnist", root=root).loader("train", batch_size=91)
    with pytest.raises(DataError, match="set `validation` above 0"):
        Image(validation=0).loader("validation", batch_size=1)


@pytest.mark.data
@pytest.mark.parametrize("data", ["mnist", "fashion-mnist"])
def test_the_real_files(data: Any) -> None:
    task = Image(data=data, root=os.environ["LIMBECK_DATA"])
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.examples) == ((1, 28, 28), 10, 54_000)
    assert len(task.loader("validation", batch_size=6000)) == 1 and len(task.loader("test", batch_size=10_000)) == 1
    (test,) = task.loader("test", batch_size=10_000).batches(0)
    published = {"mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], "fashion-mnist": [1000] * 10}
    assert test["label"].bincount().tolist() == published[data]
    mean, std = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}[data]
    assert facts.preprocess["mean"] == pytest.approx([mean], abs=3e-4) and facts.preprocess["std"] == pytest.approx([std], abs=3e-4)
