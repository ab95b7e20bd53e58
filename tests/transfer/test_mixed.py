"""Mixtures are those of the papers: checked value by value, and their draws against scipy."""

from typing import Any

import pytest
import torch
from scipy import stats

from limbeck.core.errors import MismatchError
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Task
from limbeck.tasks.classify import Classify
from limbeck.transfer.mixed import beta_table, cut, mixed, partners


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_shares_are_beta(alpha: float) -> None:
    table = beta_table(alpha)
    lower = table[:2048].double()  # the upper half comes close to one, where float32 sees less
    assert abs(stats.beta(alpha, alpha).cdf(lower.numpy()) - (torch.arange(2048).numpy() + 0.5) / 4096).max() < 1e-5
    torch.testing.assert_close(table + table.flip(0), torch.ones(4096), atol=1e-6, rtol=0)
    assert abs(float(table.var()) * 4 * (2 * alpha + 1) - 1) < 2e-3


def test_partners_are_others_each_once_whatever_the_order() -> None:
    ids = torch.arange(100, 164)
    found = partners(ids, 7)
    assert (found != torch.arange(64)).all() and found.sort().values.tolist() == [*range(64)]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert dict(zip(ids[order].tolist(), ids[order][partners(ids[order], 7)].tolist(), strict=True)) == dict(
        zip(ids.tolist(), ids[found].tolist(), strict=True)
    )
    assert partners(ids[:1], 7).tolist() == [0]


def test_mixup_is_the_mean_of_two() -> None:
    x = torch.randn(5, 2, 3)
    others, share = torch.tensor([1, 2, 3, 4, 0]), torch.tensor([0.0, 1.0, 0.5, 0.25, 0.9])
    found = mixed(x, others, share)
    for n in range(5):
        torch.testing.assert_close(found[n], share[n] * x[n] + (1 - share[n]) * x[others[n]])


def test_cutmix_by_a_naive_loop() -> None:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, 7, 10, generator=made)
    others, share = torch.randperm(40, generator=made), torch.rand(40, generator=made)
    rows, columns = torch.randint(7, (40,), generator=made), torch.randint(10, (40,), generator=made)
    found, own = cut(x, others, share, rows, columns)
    for n in range(40):
        expected, pixels = x[n].clone(), 0
        half = [int(length * float((1 - share[n]).sqrt())) // 2 for length in (7, 10)]
        for i in range(7):
            for j in range(10):
                if rows[n] - half[0] <= i < rows[n] + half[0] and columns[n] - half[1] <= j < columns[n] + half[1]:
                    expected[:, i, j] = x[others[n], :, i, j]
                    pixels += 1
        assert torch.equal(found[n], expected)
        assert abs(float(own[n]) - (1 - pixels / 70)) < 1e-6
    whole, share = cut(x, others, torch.zeros(40), torch.full((40,), 4), torch.full((40,), 5))
    assert torch.equal(whole[:, :, 1:], x[others][:, :, 1:]) and share.max() < 0.2


def digits() -> Task:
    return build("tasks", "image", {"data": "digits", "subset": 512})


def one(**options: Any) -> tuple[Batch, Batch]:
    ours = next(build("transfer", "mixed", options).loader(digits(), batch_size=512, seed=2).batches(1))
    return ours, next(digits().loader("train", batch_size=512, seed=2).batches(1))


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_the_batch_says_what_was_mixed(method: str) -> None:
    ours, theirs = one(method=method, alpha=1.0)
    place = {example: row for row, example in enumerate(theirs["id"].tolist())}
    others = torch.tensor([place[example] for example in ours["partner"].tolist()])
    assert torch.equal(ours["id"], theirs["id"])
    if method == "mixup":
        assert torch.equal(ours["input"], mixed(theirs["input"], others, ours["share"]))
    else:
        own = (ours["input"] == theirs["input"]).all(1)
        assert ((ours["input"] == theirs["input"][others]).all(1) | own).all()
        assert (own.flatten(1).float().mean(1) >= ours["share"] - 1e-6).all()
    assert 0.4 < float(ours["share"].mean()) < (0.6 if method == "mixup" else 0.8)


def test_a_drawn_label_is_the_papers_loss_in_the_mean() -> None:
    loader = build("transfer", "mixed", {"alpha": 1.0}).loader(digits(), batch_size=512, seed=2)
    labels = {
        example: label
        for batch in digits().loader("train", batch_size=512).batches(0)
        for example, label in zip(batch["id"].tolist(), batch["label"].tolist(), strict=True)
    }
    own, expected = [], []
    for epoch in range(30):
        batch = next(loader.batches(epoch))
        a, b = (torch.tensor([labels[example] for example in batch[name].tolist()]) for name in ("id", "partner"))
        assert ((batch["label"] == a) | (batch["label"] == b)).all()
        differ = a != b
        own.append((batch["label"] == a)[differ].float())
        expected.append(batch["share"][differ])
    chosen, share = torch.cat(own), torch.cat(expected)
    for low in (0.0, 0.25, 0.5, 0.75):
        within = (share >= low) & (share < low + 0.25)
        assert abs(float((chosen - share)[within].mean())) < 0.03


def test_dominant_labels_and_none() -> None:
    ours, theirs = one(labels="dominant")
    place = {example: row for row, example in enumerate(theirs["id"].tolist())}
    others = torch.tensor([place[example] for example in ours["partner"].tolist()])
    assert torch.equal(ours["label"], torch.where(ours["share"] >= 0.5, theirs["label"], theirs["label"][others]))
    assert "label" not in one(labels="none")[0]


def test_a_portion_is_left_as_it_is() -> None:
    ours, theirs = one(portion=0.25)
    still = ours["share"] == 1
    assert abs(float(still.float().mean()) - 0.75) < 0.07
    assert torch.equal(ours["input"][still], theirs["input"][still]) and torch.equal(ours["label"][still], theirs["label"][still])


def test_an_objective_of_labels_says_so_where_there_are_none() -> None:
    from limbeck.pipeline.check import check

    student = {
        "kind": "distill", "teacher": {"kind": "virtual"}, "model": {"kind": "mlp", "widths": [4]}, "epochs": 1, "batch_size": 32,
        "transfer": {"kind": "mixed", "labels": "none"},
    }  # fmt: skip
    with pytest.raises(MismatchError, match="supervised needs labels and the batch has none"):
        check({"name": "t", "task": {"kind": "image", "data": "digits", "subset": 96}, "stages": {"student": student}})


def test_what_cannot_be_mixed() -> None:
    def batch(x: torch.Tensor, options: dict[str, Any]) -> Batch:
        task = Classify({"train": [{"input": x, "label": torch.tensor([0, 1]), "id": torch.arange(2)}]}, classes=2)
        return next(build("transfer", "mixed", options).loader(task, batch_size=2).batches(0))

    with pytest.raises(MismatchError, match="mixup needs inputs of real numbers"):
        batch(torch.ones(2, 3, dtype=torch.int64), {})
    with pytest.raises(MismatchError, match=r"cutmix needs inputs of images \[N, C, H, W\], and the batch's are torch.float32 \[2, 3\]"):
        batch(torch.ones(2, 3), {"method": "cutmix"})
