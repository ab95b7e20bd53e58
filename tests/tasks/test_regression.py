"""Real numbers as targets: loss and scores against naive loops, targets and outputs of one number, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import Offline
from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.objectives.response.regression_kd import RegressionKD
from limbeck.tasks.regression import Regression

MADE = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=MADE)
Y = torch.randn(7, 3, dtype=torch.float64, generator=MADE)
SAID = torch.randn(7, 3, dtype=torch.float64, generator=MADE)


def test_loss_gradient_and_scores_equal_their_formula() -> None:
    task, said = Regression(), SAID.clone().requires_grad_()
    batch = task.batch((X, Y))
    knowledge = Knowledge({"main": Dense(said, "identity")})
    scores = {name: value.detach() for name, value in task.scores(knowledge, batch).items()}
    task.loss(knowledge, batch).sum().backward()
    for n in range(7):
        gaps = [float(SAID[n, d]) - float(Y[n, d]) for d in range(3)]
        assert float(scores["loss"][n]) == pytest.approx(sum(gap**2 for gap in gaps), rel=1e-9)
        assert float(scores["mse"][n]) == pytest.approx(sum(gap**2 for gap in gaps) / 3, rel=1e-9)
        assert float(scores["mae"][n]) == pytest.approx(sum(abs(gap) for gap in gaps) / 3, rel=1e-9)
        assert said.grad is not None and said.grad[n].tolist() == pytest.approx([2 * gap for gap in gaps], rel=1e-9)
    assert task.metric in scores and not task.higher_is_better


class One(nn.Module):
    """A model that gives one number an example, `[N]`: the classic that broadcasts to `[N, N]` against `[N, 1]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.parametrize("targets", [X[:, 1], X[:, 1:2], torch.arange(7), torch.arange(7)[:, None] > 3])
def test_one_number_an_example_is_a_column_on_both_sides(targets: Tensor) -> None:
    task = Regression()
    batch = task.batch({"input": X, "label": targets})
    assert batch["label"].shape == (7, 1) and batch["label"].dtype == torch.float32
    said = task.forward(One(), batch)
    assert said.main.link == "identity"
    torch.testing.assert_close(task.loss(said, batch), (X[:, 0] - targets.float().flatten()).square())


@pytest.mark.parametrize(
    ("targets", "error", "told"),
    [
        (Y[:6], MismatchError, r"torch.float64 \[6, 3\]; it must be a tensor \[7, D\] or of one number for each input"),
        (Y[:, :, None], MismatchError, r"\[7, 3, 1\]"),
        (Y.tolist(), MismatchError, "list"),
        (torch.where(Y[2] == Y, math.inf, Y), DataError, "labels of example 2 of a batch are not finite"),
    ],
)
def test_targets_that_are_refused(targets: Any, error: type[LimbeckError], told: str) -> None:
    with pytest.raises(error, match=told):
        Regression().batch((X, targets))


def test_what_else_is_refused() -> None:
    task = Regression()
    with pytest.raises(MismatchError, match=r"gives \[7, 5\] and the labels are \[7, 3\]"):
        task.loss(task.forward(nn.Identity(), {"input": X}), task.batch((X, Y)))
    with pytest.raises(MismatchError, match="Regression needs"):
        task.forward(nn.Unflatten(1, (5, 1)), {"input": X})
    with pytest.raises(RecipeError, match="one of the two"):
        Regression({"train": [(X, Y)]}, root="a.npz")
    with pytest.raises(DataError, match=r"Regression\({'train': ...}\)"):
        task.facts()


def test_the_facts_are_of_the_loader() -> None:
    facts = Regression({"train": [(X, Y)] * 3}, class_names=["x", "y", "z"]).facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.examples) == ((5,), 3, ("x", "y", "z"), 21)
    assert Regression({"train": [X]}, class_names=["x"]).facts().labelled is False
    with pytest.raises(DataError, match="give class_names"):
        Regression({"train": [X]}).facts()
    with pytest.raises(MismatchError, match="names 1 numbers, and the targets have 3"):
        Regression({"train": [(X, Y)]}, class_names=["x"]).facts()


def test_the_bounded_objective_reads_the_targets() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    found = Offline(student, teacher, [RegressionKD()], task=Regression())((X, Y)).loss
    ours, theirs = ((model(X) - Y.float()).square().sum(1) for model in (student, teacher))
    torch.testing.assert_close(found, torch.where(ours <= theirs, 0.0, ours).mean())
