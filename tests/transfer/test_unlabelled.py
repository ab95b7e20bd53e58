"""Few labels stay, the same for every run, and an objective of labels is a mean over these alone."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Task
from limbeck.schemes.offline import Offline
from limbeck.tasks.classify import Classify
from limbeck.tasks.multilabel import MultiLabel
from limbeck.transfer.unlabelled import chosen


def digits(**options: Any) -> Task:
    return build("tasks", "image", {"data": "digits", "subset": 300, **options})


def epoch(number: int = 0, size: int = 30, seed: int = 0, of: Task | None = None, **options: Any) -> list[Batch]:
    return [*build("transfer", "unlabelled", options).loader(of or digits(), batch_size=size, seed=seed).batches(number)]


def truth() -> dict[int, int]:
    return {
        example: label
        for batch in digits().loader("train", batch_size=300).batches(0)
        for example, label in zip(*map(torch.Tensor.tolist, (batch["id"], batch["label"])), strict=True)
    }


def test_classes_take_turns_and_more_keep_what_fewer_kept() -> None:
    ids, labels = torch.arange(500, 600), torch.tensor([0] * 50 + [1] * 47 + [2] * 3)
    for count, counts in ((9, (3, 3, 3)), (10, (4, 3, 3)), (50, (24, 23, 3)), (100, (50, 47, 3))):
        found = chosen(ids, labels, count, seed=1)
        assert len(found) == count and found.unique().numel() == count
        assert sorted(Counter(labels[found - 500].tolist()).values()) in (sorted(counts), sorted((counts[1], counts[0], counts[2])))
    fewer, more = chosen(ids, labels, 9, seed=1), chosen(ids, labels, 33, seed=1)
    assert {*fewer.tolist()} < {*more.tolist()}
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chosen(ids[order], labels[order], 33, seed=1), more)
    assert not torch.equal(chosen(ids, labels, 33, seed=2), more)


@pytest.mark.parametrize(("labelled", "count"), [(40, 40), (0.1, 30), (0, 0), (300, 300)])
def test_so_many_keep_their_label_and_no_other_is_told(labelled: float, count: int) -> None:
    right, batches = truth(), epoch(labelled=labelled)
    ids, labels, known = (torch.cat([batch[name] for batch in batches]) for name in ("id", "label", "labelled"))
    assert int(known.sum()) == count
    assert known.dtype == torch.bool and not labels[~known].any()
    assert labels[known].tolist() == [right[example] for example in ids[known].tolist()]


def test_the_choice_is_not_the_run_s() -> None:
    def kept(**how: Any) -> set[int]:
        return {example for batch in epoch(labelled=40, **how) for example in batch["id"][batch["labelled"]].tolist()}

    assert kept() == kept(seed=5, number=3) != kept(split_seed=1)


def test_an_objective_of_labels_is_a_mean_over_the_labelled_alone() -> None:
    task = digits()
    batch = epoch(of=task, labelled=60)[0]
    student, teacher = (build("models", "mlp", {"widths": [4]}, in_shape=(1, 8, 8), classes=10) for _ in range(2))
    supervised = Offline(student, teacher, [build("objectives", "supervised", {})], task, batch)
    known, z = batch["labelled"], student(batch["input"])
    assert 0 < int(known.sum()) < 30
    torch.testing.assert_close(supervised(batch).loss, F.cross_entropy(z[known], batch["label"][known]))
    kd = Offline(student, teacher, [build("objectives", "response.kd", {"temperature": 1.0})], task, batch)
    p = teacher(batch["input"]).softmax(1)
    torch.testing.assert_close(kd(batch).loss, (p * (p.log() - z.log_softmax(1))).sum(1).mean())


def test_a_batch_holds_its_share_of_labelled_ones_in_turns() -> None:
    right, batches = truth(), epoch(labelled=25, per_batch=10)
    shown = [example for batch in batches for example in batch["id"][batch["labelled"]].tolist()]
    assert all(batch["labelled"].tolist() == [True] * 10 + [False] * 20 for batch in batches)
    assert all(batch["label"][:10].tolist() == [right[example] for example in batch["id"][:10].tolist()] and not batch["label"][10:].any() for batch in batches)
    assert len(batches) == 300 // 20 and max(Counter(shown).values()) - min(Counter(shown).values()) <= 1
    assert len({*shown[:25]}) == 25 and shown[:25] != shown[25:50]
    unlabelled = [example for batch in batches for example in batch["id"][10:].tolist()]
    assert len({*unlabelled}) == 300


def test_labelled_ones_are_augmented_as_the_epoch_has_them() -> None:
    task = digits(augment=[{"kind": "shift", "pixels": 2}])
    for number in (0, 1):
        batches = epoch(number, of=task, labelled=25, per_batch=10)
        rows = {
            example: row
            for batch in task.loader("train", batch_size=300).batches(number)
            for example, row in zip(batch["id"].tolist(), batch["input"], strict=True)
        }
        assert all(torch.equal(rows[example], row) for batch in batches for example, row in zip(batch["id"].tolist(), batch["input"], strict=True))


def test_processes_take_different_labelled_ones() -> None:
    parts = [
        next(build("transfer", "unlabelled", {"labelled": 40, "per_batch": 10}).loader(digits(), batch_size=30, rank=rank, world=2).batches(0))["id"][:10]
        for rank in range(2)
    ]
    assert not {*parts[0].tolist()} & {*parts[1].tolist()}


def test_what_cannot_be() -> None:
    with pytest.raises(DataError, match="labelled is 301, and the training split has 300 examples"):
        epoch(labelled=301)
    with pytest.raises(RecipeError, match=r"per_batch is 30 of batches of 30 .*leave room"):
        epoch(labelled=40, per_batch=30)
    numbers = Classify({"train": [{"input": torch.ones(2, 3), "label": torch.tensor([0, 1]), "id": torch.arange(2)}]}, classes=2)
    assert epoch(of=numbers, size=2, labelled=1)[0]["labelled"].sum() == 1
    with pytest.raises(MismatchError, match="needs one class for each example"):
        several = MultiLabel({"train": [{"input": torch.ones(2, 3), "label": torch.eye(2), "id": torch.arange(2)}]})
        epoch(of=several, size=2, labelled=1)
