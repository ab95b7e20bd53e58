"""Nodes of one graph: which predictions count in each split, what is known of the others, and what the loss is worth."""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build, find
from limbeck.core.task import Batch, Split, Task

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def made(root: Path, **options: Any) -> Task:
    return build("tasks", "graph", {"root": str(root), "validation": 12} | options)


def whole(task: Task, split: Split = "train") -> Batch:
    loader = task.loader(split, batch_size=3)
    (batch,) = loader.batches(7)
    assert len(loader) == 1 and not list(loader.batches(7, skip=1))
    return batch


class Edges(nn.Module):
    """The sum of each node's neighbours, through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]]))


def test_each_split_counts_its_own_nodes_and_shows_no_other_label(planetoid: Path) -> None:
    rows = {"train": range(4), "validation": range(4, 16), "test": sorted(set(range(24, 40)) - {26, 31})}
    for split in SPLITS:
        batch = whole(made(planetoid, teach="labelled"), split)
        assert batch["mask"].nonzero().flatten().tolist() == list(rows[split])
        assert batch["label"][batch["mask"]].tolist() == [row % 2 for row in rows[split]]
        assert not batch["label"][~batch["mask"]].any()
        assert batch["input"].shape == (40, 6) and batch["id"].tolist() == list(range(40))
    taught = whole(made(planetoid))
    assert taught["mask"].all() and taught["label"].tolist() == [0, 1, 0, 1] + [-1] * 36
    for split in ("validation", "test"):
        assert torch.equal(whole(made(planetoid), split)["label"], whole(made(planetoid, teach="labelled"), split)["label"])


def test_features_of_a_node_sum_to_one_or_are_nothing(planetoid: Path) -> None:
    sums = whole(made(planetoid))["input"].sum(1)
    empty = torch.tensor([5, 26, 31])
    assert torch.allclose(sums.index_fill(0, empty, 1.0), torch.ones(40)) and not sums[empty].any()
    assert whole(made(planetoid, normalize=False))["input"].max() == 3.0


@pytest.mark.parametrize("teach", ["all", "labelled"])
def test_objectives_that_read_labels_are_means_over_labelled_nodes_whoever_counts(planetoid: Path, teach: str) -> None:
    task = made(planetoid, teach=teach)
    student, teacher = nn.Linear(6, 2), nn.Linear(6, 2)
    batch, labels = whole(task), torch.tensor([0, 1, 0, 1])
    dkd = find("objectives", "dkd")
    z, v = student(batch["input"])[:4], teacher(batch["input"])[:4]
    leaf = importlib.import_module(dkd.__module__).dkd_loss
    for objective, expected in ((find("objectives", "supervised")(), F.cross_entropy(z, labels)), (dkd(), leaf(z, v, labels).mean())):
        losses = build("schemes", "offline", {}, student, teacher, [objective], task, batch, task.facts())(batch)
        assert torch.allclose(losses.loss, expected)
        assert torch.allclose(next(iter(losses.parts.values())) / losses.count, expected)
        for parameter, gradient in zip(student.parameters(), torch.autograd.grad(expected, list(student.parameters()), retain_graph=True), strict=True):
            (found,) = torch.autograd.grad(losses.loss, parameter, retain_graph=True)
            assert torch.allclose(found, gradient, atol=1e-7)


def test_scores_are_of_the_split_alone(planetoid: Path) -> None:
    task = made(planetoid)
    logits = F.one_hot(torch.arange(40) % 2, 2).float() * 4
    logits[24] = logits[24].flip(0)
    for split, right, count in (("train", 4, 4), ("validation", 12, 12), ("test", 13, 14)):
        batch = whole(task, cast(Split, split))
        found = task.scores(Knowledge({"main": Dense(logits)}, mask=batch["mask"]), batch)
        assert found["accuracy"].shape == found["loss"].shape == (count,) and found["accuracy"].sum() == right


@pytest.mark.parametrize(("teach", "taught"), [("all", 40), ("labelled", 4)])
def test_a_teacher_teaches_on_the_nodes_that_count(planetoid: Path, teach: str, taught: int) -> None:
    """Only what counts reaches a bias of its own for each node; supervision alone reaches the labelled ones."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.zeros(40, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] + self.own

    task = made(planetoid, teach=teach)
    student = Biased()
    kd, supervised = build("objectives", "response.kd", {}), build("objectives", "supervised", {})
    for objectives, nodes in (([kd], taught), ([supervised], 4)):
        student.own.grad = None
        scheme = build("schemes", "offline", {}, student, nn.Linear(6, 2), objectives, task, whole(task), task.facts())
        losses = scheme(whole(task))
        losses.loss.backward()
        assert losses.count == taught and student.own.grad is not None
        assert (student.own.grad.abs().sum(1) > 0).sum() == nodes


def test_edges_go_to_models_that_take_them(planetoid: Path) -> None:
    task = made(planetoid)
    batch = whole(task)
    model = Edges()
    assert torch.equal(task.forward(model, batch).main.logits, model(batch["input"], batch["edge_index"]))
    alone = nn.Sequential(nn.Linear(6, 2))
    said = task.forward(alone, batch)
    assert torch.equal(said.main.logits, alone(batch["input"])) and said.mask is not None
    with pytest.raises(MismatchError, match=r"logits of shape \[40\] for 40 nodes"):
        task.forward(nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), batch)


def test_facts_and_splits(planetoid: Path) -> None:
    task = made(planetoid)
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.examples) == ((6,), 2, ("0", "1"), 4)
    assert task.splits() == ("train", "validation", "test")
    none = made(planetoid, validation=0)
    assert none.splits() == ("train", "test")
    with pytest.raises(DataError, match="no validation split"):
        none.loader("validation", batch_size=1)


def test_a_fingerprint_is_of_content_and_options_and_not_of_place(planetoid: Path) -> None:
    before = made(planetoid).fingerprint()
    shutil.copytree(planetoid / "graph-planetoid", planetoid / "elsewhere")
    assert made(planetoid / "elsewhere").fingerprint() == before
    for options in ({"teach": "labelled"}, {"validation": 11}, {"normalize": False}):
        assert made(planetoid, **options).fingerprint() != before
    index = planetoid / "graph-planetoid" / "ind.cora.test.index"
    index.write_text(index.read_text() + "\n")
    assert made(planetoid).fingerprint() != before


def test_what_cannot_be_meant_is_refused(planetoid: Path, tmp_path: Path) -> None:
    for options, told in (
        ({"data": "kora"}, "'cora'"),
        ({"teach": "some"}, "'all' or 'labelled'"),
        ({"validation": -1}, "0 or more"),
    ):
        with pytest.raises(RecipeError, match=told):
            made(planetoid, **options)
    with pytest.raises(RecipeError, match="needs `root`"):
        build("tasks", "graph", {})
    with pytest.raises(DataError, match="validation is 21, and cora has 20 nodes"):
        made(planetoid, validation=21).facts()
    with pytest.raises(DataError, match=r"graph-planetoid/"):
        made(tmp_path / "nowhere").facts()
    with pytest.raises(DataError, match=r"ind\.pubmed\.x is missing"):
        made(planetoid, data="pubmed").facts()
    with pytest.raises(MismatchError, match=r"2 processes.*devices to 1"):
        made(planetoid).loader("train", batch_size=1, world=2)
    for raw, told in (({"input": torch.zeros(1)}, "has the fields input"), ((1, 2), "is a tuple")):
        with pytest.raises(MismatchError, match=told):
            made(planetoid).batch(raw)
    batch = {name: value for name, value in whole(made(planetoid)).items() if name != "label"}
    with pytest.raises(MismatchError, match="no labels"):
        made(planetoid).loss(Knowledge({"main": Dense(torch.zeros(40, 2))}), batch)


@pytest.mark.data
def test_cora_is_the_published_one() -> None:
    task = build("tasks", "graph", {"root": os.environ["LIMBECK_DATA"], "teach": "labelled"})
    batch = whole(task)
    assert batch["input"].shape == (2708, 1433) and batch["edge_index"].shape == (2, 10556)
    assert batch["label"][batch["mask"]].bincount().tolist() == [20] * 7
    assert [int(whole(task, split)["mask"].sum()) for split in SPLITS] == [140, 500, 1000]
    source, target = batch["edge_index"]
    assert len({*source.tolist()}) == 2708 and bool((source != target).all())
