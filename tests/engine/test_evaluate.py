"""Metrics over a split are means over its examples, whatever the batches."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build, find
from limbeck.core.task import Batch, Task
from limbeck.engine.evaluate import evaluate, predict
from limbeck.engine.runtime import Runtime

from .conftest import mlp


@pytest.mark.parametrize("size", [1, 7, 48, 1000])
def test_metrics_are_means_over_examples(make_task: Callable[..., Task], size: int) -> None:
    task = make_task(class_weight=[1.0, 2.0, 3.0])
    torch.manual_seed(0)
    model = mlp(8).double()
    whole = next(task.loader("validation", batch_size=1000).batches(0))
    logits = model(whole["input"].double())
    right = (logits.argmax(1) == whole["label"]).double().mean().item()
    loss = (torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[whole["label"]] * F.cross_entropy(logits, whole["label"], reduction="none")).mean().item()
    found = evaluate(model.float(), task, "validation", Runtime(), batch_size=size)
    assert found == pytest.approx({"accuracy": right, "loss": loss}, rel=1e-5)


def test_modes_statistics_and_random_state_stay_as_they_were(make_task: Callable[..., Task]) -> None:
    task = make_task()
    model = torch.nn.Sequential(build("models", "cnn", {"width": 2}, in_shape=(1, 6, 6), classes=3), torch.nn.Dropout(0.5))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    evaluate(model, task, "validation", Runtime(), batch_size=5)
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(3)))
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_are_in_the_split_s_order(make_task: Callable[..., Task]) -> None:
    task = make_task()
    model = mlp(8).eval()
    whole = next(task.loader("test", batch_size=1000).batches(0))
    said = predict(partial(task.forward, model), task, "test", batch_size=7)
    torch.testing.assert_close(said.logits, model(whole["input"]))
    assert torch.equal(said.labels, whole["label"]) and torch.equal(said.ids, whole["id"])
    assert not said.logits.requires_grad


def test_predictions_without_ids_are_numbered() -> None:
    x, y = torch.randn(10, 4), torch.arange(10) % 2
    loaders = {"train": [(x, y)], "test": [(x[:6], y[:6]), (x[6:], y[6:])]}
    task = find("tasks", "classify")(loaders, classes=2)
    assert predict(partial(task.forward, torch.nn.Linear(4, 2)), task, "test").ids.tolist() == list(range(10))


def test_only_valid_predictions_are_collected() -> None:
    x, y = torch.randn(10, 4), torch.arange(10) % 2
    task = find("tasks", "classify")({"train": [(x, y)], "test": [(x[:6], y[:6]), (x[6:], y[6:])]}, classes=2)

    def answer(batch: Batch) -> Knowledge:
        return Knowledge({"main": Dense(batch["input"][:, :2])}, mask=batch["label"] == 1)

    said = predict(answer, task, "test")
    assert torch.equal(said.logits, x[1::2, :2]) and said.labels.tolist() == [1] * 5 and said.ids.tolist() == [1, 3, 5, 7, 9]
