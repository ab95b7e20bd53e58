"""`relation.cc` against a loop over pairs, and against the Gaussian kernel itself."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import RecipeError
from limbeck.objectives.relation.cc import CC, cc_loss


def naive(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    def kernel(x: Tensor) -> Tensor:
        rows = x.double().flatten(1)
        cosines = torch.stack([F.cosine_similarity(one, other, dim=0) for one in rows for other in rows])
        return sum((math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)), torch.zeros(()))

    return (kernel(teacher) - kernel(student)).square().sum() / len(student) ** 2


@pytest.mark.parametrize(("ours", "theirs"), [((5, 4), (5, 7)), ((4, 2, 3, 3), (4, 5, 2, 1))])
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.5, 1), (0.1, 5)])
def test_it_equals_a_loop_in_value_and_gradient(ours: tuple[int, ...], theirs: tuple[int, ...], gamma: float, order: int) -> None:
    student, teacher = torch.randn(ours, dtype=torch.float64, requires_grad=True), torch.randn(theirs, dtype=torch.float64)
    loss, expected = cc_loss(student, teacher, gamma=gamma, order=order), naive(student, teacher, gamma, order)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(one, student)[0] for one in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-9)


def test_the_expansion_ends_in_the_gaussian_kernel() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    kernels = [(-0.4 * torch.cdist(F.normalize(x), F.normalize(x)).square()).exp() for x in (student, teacher)]
    assert cc_loss(student, teacher, order=20).item() == pytest.approx(F.mse_loss(kernels[0], kernels[1]).item(), rel=1e-9)


def test_the_bilinear_kernel_is_the_cosine() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    expected = F.mse_loss(F.normalize(student) @ F.normalize(student).T, F.normalize(teacher) @ F.normalize(teacher).T)
    assert cc_loss(student, teacher, kernel="bilinear").item() == pytest.approx(expected.item(), rel=1e-9)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'gaussian'"):
        CC(kernel=cast(Any, "gauss"))
    with pytest.raises(RecipeError, match="gamma is 0"):
        CC(gamma=0)
    with pytest.raises(RecipeError, match="order is 0"):
        CC(order=0)
