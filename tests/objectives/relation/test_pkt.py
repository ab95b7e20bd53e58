"""`relation.pkt` against a loop over pairs."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import RecipeError
from limbeck.objectives.relation.pkt import PKT, pkt_loss


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    def neighbours(x: Tensor) -> list[list[Tensor]]:
        rows = x.double().flatten(1)
        kernel = [[(F.cosine_similarity(one, other, dim=0) + 1) / 2 + 1e-7 for other in rows] for one in rows]
        return [[kernel[i][j] / sum(kernel[i][k] for k in range(len(x)) if k != i) for j in range(len(x))] for i in range(len(x))]

    p, q, n = neighbours(teacher), neighbours(student), range(len(student))
    return sum((p[i][j] * (p[i][j] / q[i][j]).log() for i in n for j in n if i != j), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(("ours", "theirs"), [((5, 4), (5, 7)), ((4, 2, 3, 3), (4, 5, 2, 1))])
def test_it_equals_a_loop_in_value_and_gradient(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = torch.randn(ours, dtype=torch.float64, requires_grad=True), torch.randn(theirs, dtype=torch.float64)
    loss, expected = pkt_loss(student, teacher), naive(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert pkt_loss(student, teacher, reduction="mean").item() == pytest.approx(expected.item() / ours[0] ** 2, rel=1e-6)
    gradients = [torch.autograd.grad(one, student)[0] for one in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-9)


def test_it_is_a_divergence_blind_to_the_length_of_a_feature() -> None:
    student, teacher = torch.randn(6, 3), torch.randn(6, 4)
    assert pkt_loss(student, teacher) > 0
    assert pkt_loss(teacher * torch.rand(6, 1).add(0.1), teacher).item() == pytest.approx(0, abs=1e-5)
    assert pkt_loss(student * 1e3, teacher).item() == pytest.approx(pkt_loss(student, teacher).item(), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_one_other_example_has_all_the_probability(n: int, scale: float) -> None:
    assert pkt_loss(scale * torch.randn(n, 3), torch.randn(n, 2)).abs() < 1e-6


def test_an_opposite_that_the_teacher_sees_beside_it_costs_a_finite_price() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = pkt_loss(student, torch.ones(3, 2))
    loss.backward()
    one_sided = math.log(1 / 2 / 1e-7) / 2 + math.log(1 / 2) / 2  # of rows 0 and 2; row 1 sees both alike
    assert loss.item() == pytest.approx(2 * one_sided, rel=0.02)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        PKT(reduction=cast(Any, "means"))
