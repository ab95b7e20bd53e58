"""iCaRL: the nearest mean of exemplars is a linear head."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.schemes.icarl import ICaRL, class_means


@pytest.fixture
def task(tmp_path: Path) -> Task:
    made = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = (made.normal(size=(120, 4, 4)) + labels[:, None, None]).astype(np.float32)
    np.savez(tmp_path / "toy.npz", x_train=images[:90], y_train=labels[:90], x_test=images[90:], y_test=labels[90:])
    return build("tasks", "image", {"data": "npz", "root": str(tmp_path / "toy.npz")})


def scheme(task: Task, **options: Any) -> ICaRL:
    torch.manual_seed(0)
    student = build("models", "mlp", {"widths": [8], "dropout": 0.5}, in_shape=(1, 4, 4), classes=3)
    example = next(iter(task.loader("train", batch_size=16).batches(0)))
    return ICaRL(student, None, [build("objectives", "supervised", {})], task, example, task.facts(), **options)


def test_class_means_have_length_one_and_ignore_the_features_own() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    means = class_means(features, torch.tensor([0, 0, 2]), 4)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))


def test_the_head_says_what_the_nearest_mean_says(task: Task) -> None:
    made = scheme(task, size=12)
    student = made.base.student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    shipped = made.shipped()
    assert shipped["student"] is student and student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    exemplars = made._replay.remember(task, student)
    assert exemplars.labels.bincount().tolist() == [4, 4, 4]
    body = nn.Sequential(*list(student.children())[:-1]).eval()

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    with torch.no_grad():
        means = torch.stack([unit(unit(body(exemplars.inputs[exemplars.labels == label])).mean(0)) for label in range(3)])
        test = next(iter(task.loader("test", batch_size=64).batches(0)))
        distance = (unit(body(test["input"])).unsqueeze(1) - means).norm(dim=2)
        said = shipped["nearest_mean"].eval()(test["input"])
    assert torch.equal(said.argmax(1), distance.argmin(1))


def test_it_learns_as_offline_does_and_only_the_student_learns(task: Task) -> None:
    made = scheme(task, size=12)
    batch = next(iter(task.loader("train", batch_size=16).batches(0)))
    made.eval()
    torch.testing.assert_close(made(batch).loss, made.base(batch).loss)
    assert made.players().keys() == {"student"} and made.phases == ("student",)


def test_what_it_cannot_do_is_refused(task: Task) -> None:
    with pytest.raises(MismatchError, match="'layer1' is a Sequential; means of features take the place of a linear layer"):
        scheme(task, head="layer1")
    with pytest.raises(RecipeError, match="has no layer 'heat'; did you mean 'head'"):
        scheme(task, head="heat")
    with pytest.raises(RecipeError, match="a memory of 2 has no room for an exemplar of each of 3 classes"):
        scheme(task, size=2).shipped()
