"""Noise has the size that was asked for, is each value's own, and belongs to the example."""

import pytest
import torch

from limbeck.core.errors import MismatchError
from limbeck.core.lookup import build
from limbeck.tasks.classify import Classify
from limbeck.transfer.noise import noisy

IDS = torch.arange(400)


def test_the_normal_noise_is_normal() -> None:
    found = noisy(torch.zeros(400, 5, 20), IDS, deviation=0.5, jitter=0.0, seed=0, view=0).flatten(1)
    assert abs(float(found.mean())) < 0.01 and abs(float(found.std()) - 0.5) < 0.01
    assert abs(float((found.abs() < 0.5).float().mean()) - 0.6827) < 0.01
    assert found.unique().numel() > 39_000
    assert torch.corrcoef(found.T).triu(1).abs().max() < 0.25


def test_the_jitter_is_one_contrast_and_one_brightness_for_each_example() -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    found = noisy(x, IDS, deviation=0.0, jitter=0.2, seed=0, view=0)
    scale = (found[:, 1] - found[:, 0]) / (x[:, 1] - x[:, 0])
    offset = found[:, 0] - scale * x[:, 0]
    torch.testing.assert_close(found, scale[:, None] * x + offset[:, None], atol=1e-3, rtol=1e-3)
    for drawn, middle in ((scale, 1.0), (offset, 0.0)):
        assert (drawn - middle).abs().max() <= 0.21 and abs(float((drawn - middle).std()) - 0.2 / 3**0.5) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([scale, offset]))[0, 1])) < 0.15


def test_it_belongs_to_the_example_and_not_to_its_place() -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:50]
    how = {"deviation": 0.3, "jitter": 0.1, "seed": 5, "view": 2}
    assert torch.equal(noisy(x[order], IDS[order], **how), noisy(x, IDS, **how)[order])
    assert not torch.equal(noisy(x, IDS, **{**how, "view": 3}), noisy(x, IDS, **how))


def test_nothing_else_changes() -> None:
    task = build("tasks", "image", {"data": "digits", "subset": 64})
    ours = next(build("transfer", "noise", {"deviation": 0.1}).loader(task, batch_size=64, seed=1).batches(0))
    theirs = next(task.loader("train", batch_size=64, seed=1).batches(0))
    assert torch.equal(ours["label"], theirs["label"]) and torch.equal(ours["id"], theirs["id"])
    assert ours["input"].dtype == torch.float32 and abs(float((ours["input"] - theirs["input"]).std()) - 0.1) < 0.005


def test_tokens_have_no_noise() -> None:
    task = Classify({"train": [{"input": torch.ones(4, 3, dtype=torch.int64), "label": torch.tensor([0, 1, 0, 1]), "id": torch.arange(4)}]}, classes=2)
    with pytest.raises(MismatchError, match=r"noise needs inputs of real numbers, and the batch's are torch\.int64"):
        next(build("transfer", "noise", {}).loader(task, batch_size=4).batches(0))
