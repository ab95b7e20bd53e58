"""One task of a sequence: which examples it has, by which labels, and what counts of the answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.core.task import Sequel, Task

TASKS = [[3, 1], [0], [2, 4]]


@pytest.fixture
def of(tmp_path: Path) -> dict[str, Any]:
    """Five classes of 4x4 images, 200 to train and validate on and 50 to test on."""
    made = np.random.default_rng(0)
    labels = np.arange(250) % 5
    images = made.normal(size=(250, 4, 4)).astype(np.float32)
    images[:, 0, 0] = labels
    np.savez(tmp_path / "toy.npz", x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    return {"kind": "image", "data": "npz", "root": str(tmp_path / "toy.npz"), "validation": 0.2, "normalize": False}


def split(of: dict[str, Any], **options: Any) -> Sequel:
    return build("tasks", "split", {"of": of, "tasks": TASKS, **options})


def rows(task: Task, part: Any, **how: Any) -> dict[str, torch.Tensor]:
    found = [dict(one) for one in task.loader(part, batch_size=8, **how).batches(0)]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def test_it_trains_on_its_own_classes_and_is_tested_on_all_so_far(of: dict[str, Any]) -> None:
    task = split(of, now=1)
    train, test = rows(task, "train", whole=True), rows(task, "test")
    assert train["label"].unique().tolist() == [2]
    assert train["input"][:, 0, 0, 0].unique().tolist() == [0]
    assert test["label"].unique().tolist() == [0, 1, 2] and len(test["label"]) == 30
    order = torch.tensor([3.0, 1.0, 0.0])
    assert torch.equal(test["input"][:, 0, 0, 0], order[test["label"]])
    assert rows(task, "validation")["label"].unique().tolist() == [0, 1, 2]
    facts = task.facts()
    assert (facts.classes, facts.class_names, facts.examples) == (3, ("3", "1", "0"), 32)
    assert facts.preprocess["split"] == {"tasks": [2, 1], "heads": "single", "joint": False}
    assert facts.preprocess["kind"] == "image"


def test_the_parts_are_the_whole(of: dict[str, Any]) -> None:
    each = [set(rows(split(of, now=now), "train", whole=True)["id"].tolist()) for now in range(3)]
    joint = set(rows(split(of, joint=True), "train", whole=True)["id"].tolist())
    inner = set(rows(build("tasks", "image", {name: value for name, value in of.items() if name != "kind"}), "train", whole=True)["id"].tolist())
    assert set.union(*each) == joint == inner and sum(map(len, each)) == len(joint)


def test_batches_are_shuffled_by_seed_and_epoch_and_shared_by_rank(of: dict[str, Any]) -> None:
    task = split(of)
    loader = task.loader("train", batch_size=8, seed=3)
    first = [batch["id"] for batch in loader.batches(2)]
    assert len(first) == len(loader) == 64 // 8
    assert all(torch.equal(a, b["id"]) for a, b in zip(first, loader.batches(2), strict=True))
    assert all(torch.equal(a, b["id"]) for a, b in zip(first[3:], loader.batches(2, skip=3), strict=True))
    assert not torch.equal(first[0], next(iter(loader.batches(3)))["id"])
    ranks = [[batch["id"] for batch in task.loader("train", batch_size=4, seed=3, rank=rank, world=2).batches(2)] for rank in range(2)]
    assert all(torch.equal(torch.cat([a, b]), whole) for a, b, whole in zip(*ranks, first, strict=True))


def test_augmentation_is_the_inner_task_s_and_what_is_remembered_has_none(of: dict[str, Any]) -> None:
    moved = {**of, "augment": [{"kind": "shift", "pixels": 1}]}
    task, still = split(moved), split(of)
    a, b = rows(task, "train", whole=True), rows(still, "train", whole=True)
    assert torch.equal(a["id"], b["id"]) and not torch.equal(a["input"], b["input"])
    past, everything = rows(task.so_far(), "train", whole=True), rows(split(of, joint=True), "train", whole=True)
    assert torch.equal(past["input"], everything["input"]) and torch.equal(past["label"], everything["label"])


def test_one_head_or_one_for_each_task(of: dict[str, Any]) -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0, 0.0, 0.0], [5.0, 0.0, 0.0, 2.0, 3.0]])
    batch = {"label": torch.tensor([1, 4])}
    said = Knowledge({"main": Dense(logits)})
    single, multi = split(of), split(of, heads="multi")
    assert torch.equal(single.loss(said, batch), F.cross_entropy(logits, batch["label"], reduction="none"))
    expected = torch.stack([F.cross_entropy(logits[0, :2], torch.tensor(1)), F.cross_entropy(logits[1, 3:], torch.tensor(1))])
    torch.testing.assert_close(multi.loss(said, batch), expected)
    assert single.scores(said, batch)["accuracy"].tolist() == [0, 0] and multi.scores(said, batch)["accuracy"].tolist() == [1, 1]
    leaf = logits.clone().requires_grad_()
    multi.loss(Knowledge({"main": Dense(leaf)}), batch).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and not leaf.grad[0, 2:].any()


def test_classes_by_name_and_classes_known_from_elsewhere(of: dict[str, Any]) -> None:
    named = build("tasks", "split", {"of": of, "tasks": [["3", "1"], ["0"]]})
    assert named.facts().class_names == ("3", "1", "0")
    later = split(of, tasks=[[2, 4]], known=[["hat", "coat"], ["shoe"]])
    assert later.facts().class_names == ("hat", "coat", "shoe", "2", "4")
    assert later.facts().preprocess["split"]["tasks"] == [2, 1, 2]
    assert rows(later, "test")["label"].unique().tolist() == [3, 4]


def test_a_fingerprint_says_what_was_cut(of: dict[str, Any]) -> None:
    told = [split(of, **how).fingerprint() for how in ({}, {"now": 0}, {"joint": True}, {"tasks": [[3, 1], [0], [4, 2]]})]
    assert len(set(told)) == 4 and told[0] == split(of).fingerprint()


@pytest.mark.parametrize(
    ("options", "message", "kind"),
    [
        ({"tasks": [[0, 1], [1, 2]]}, r"class 1 \(1\) is in `tasks` twice", RecipeError),
        ({"tasks": [[0, 9]]}, "there is no class 9: the data have 5 classes, 0..4", RecipeError),
        ({"tasks": [["nil", "1"]]}, "there is no class 'nil'", RecipeError),
        ({"tasks": []}, "one class at least in every task", RecipeError),
        ({"tasks": [[0, 1], []]}, "one class at least in every task", RecipeError),
        ({"tasks": [[0], [1]]}, "the first task has one class only", RecipeError),
        ({"now": 3}, "now is 3, and there are 3 tasks, 0..2", RecipeError),
        ({"known": [["3", "hat"]]}, "class '3' is in `tasks` and in `known`", RecipeError),
        ({"of": {"data": "digits"}}, "needs the kind of the task that it cuts", RecipeError),
    ],
)
def test_what_cannot_be_meant_is_refused(of: dict[str, Any], options: dict[str, Any], message: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=message):
        split(**{"of": of, **options}).facts()


def test_class_zero_twice_is_refused_too(of: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"class 0 \(0\) is in `tasks` twice"):
        split(of, tasks=[[0, 1], [0, 2]]).facts()


def test_too_large_a_batch_and_other_logits_are_refused(of: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="batch_size is 99, and task 2 has 64 training examples"):
        split(of).loader("train", batch_size=99)
    with pytest.raises(MismatchError, match="the model gives 4 logits, and the tasks so far have 5 classes"):
        split(of, heads="multi").loss(Knowledge({"main": Dense(torch.zeros(1, 4))}), {"label": torch.tensor([0])})
