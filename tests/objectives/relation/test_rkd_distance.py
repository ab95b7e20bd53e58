"""`relation.rkd_distance` against a loop over pairs."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.relation.rkd_distance import RKDDistance, rkd_distance_loss

NO_TASK = cast(Task, None)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over pairs, one by one, in float64, with a graph."""

    def psi(x: Tensor) -> list[Tensor]:
        rows = x.double().flatten(1)
        pairs = [torch.linalg.vector_norm(rows[i] - rows[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
        return [one / (sum(pairs, torch.zeros(())) / len(pairs)) for one in pairs]

    gaps = [one - other for one, other in zip(psi(student), psi(teacher), strict=True)]
    return torch.stack([gap**2 / 2 if gap.abs() < 1 else gap.abs() - 0.5 for gap in gaps]).sum()


@pytest.mark.parametrize(("ours", "theirs"), [((5, 4), (5, 7)), ((4, 2, 3, 3), (4, 5, 2, 1)), ((2, 1), (2, 1))])
def test_it_equals_a_loop_in_value_and_gradient(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = torch.randn(ours, dtype=torch.float64, requires_grad=True), torch.randn(theirs, dtype=torch.float64) ** 3
    loss, expected = rkd_distance_loss(student, teacher, reduction="sum"), naive(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-12)
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected.item() / ours[0] ** 2, rel=1e-6, abs=1e-12)
    gradients = [torch.autograd.grad(one, student)[0] for one in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-9)


def test_neither_scale_nor_motion_nor_width_matters_and_distances_do() -> None:
    teacher = torch.randn(6, 3)
    turned, _ = torch.linalg.qr(torch.randn(8, 8))
    moved = 7 * F.pad(teacher, (0, 5)) @ turned + 100
    assert rkd_distance_loss(moved, teacher).item() == pytest.approx(0, abs=1e-9)
    assert rkd_distance_loss(teacher**3, teacher).item() > 1e-2


def test_float32_rows_close_to_each_other_and_far_from_zero_keep_their_distances() -> None:
    student = 1000 + torch.randn(6, 8) / 16
    teacher = torch.randn(6, 8)
    assert rkd_distance_loss(student, teacher, reduction="sum").item() == pytest.approx(naive(student, teacher).item(), rel=1e-6)


def test_equal_rows_have_distance_zero_and_no_gradient() -> None:
    student = torch.ones(4, 3, requires_grad=True)
    loss = rkd_distance_loss(student, torch.randn(4, 3))
    loss.backward()
    assert math.isfinite(loss.item())
    assert student.grad is not None
    assert not student.grad.any()


def test_a_bound_one_reads_its_layers_sums_them_and_leaves_masked_examples_out() -> None:
    objective = RKDDistance(layers={"a": "b", "c": "d"})
    features = {name: torch.randn(4, 3) for name in "abcd"}
    mask = torch.tensor([True, True, False, True])
    ours, theirs = Knowledge({"main": Dense(torch.zeros(4, 2))}, features, mask), Knowledge({"main": Dense(torch.zeros(4, 2))}, features)
    objective.bind(ours, theirs, NO_TASK, None)
    expected = rkd_distance_loss(features["a"][mask], features["b"][mask]) + rkd_distance_loss(features["c"][mask], features["d"][mask])
    assert torch.equal(objective(ours, theirs, {}), expected)
    assert (objective.needs.student.features, objective.needs.student.outputs) == ({"a", "c"}, set())


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        RKDDistance(reduction=cast(Any, "means"))
