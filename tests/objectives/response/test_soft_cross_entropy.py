"""`response.soft_cross_entropy` against PyTorch's own, and its identity with KL plus entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.objectives.response.kd import kd_loss
from limbeck.objectives.response.soft_cross_entropy import SoftCrossEntropy, soft_cross_entropy_loss


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 12), st.floats(0.1, 10), st.floats(0.5, 20), st.integers(0, 10**6))
def test_it_is_the_divergence_plus_the_teachers_entropy(n: int, classes: int, scale: float, temperature: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, n, classes, generator=draw, dtype=torch.float64)).unbind()
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy()
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = soft_cross_entropy_loss(one, teacher, temperature=temperature)
    divergence = kd_loss(other, teacher, temperature=temperature)
    assert torch.allclose(loss, divergence + temperature**2 * entropy, rtol=1e-9, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(loss.sum(), one)[0], torch.autograd.grad(divergence.sum(), other)[0], rtol=1e-9, atol=1e-12)


def test_it_is_a_loop_over_the_classes() -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64).unbind()
    p, q = torch.softmax(teacher / 3, -1), torch.softmax(student / 3, -1)
    expected = [-9 * sum(p[n, c].item() * q[n, c].log().item() for c in range(5)) for n in range(4)]
    assert soft_cross_entropy_loss(student, teacher, temperature=3.0).tolist() == pytest.approx(expected, rel=1e-9)


def test_at_temperature_one_it_is_pytorchs_cross_entropy_with_probabilities() -> None:
    student, teacher = torch.randn(2, 8, 10).unbind()
    expected = F.cross_entropy(student, teacher.softmax(-1), reduction="none")
    assert torch.allclose(soft_cross_entropy_loss(student, teacher, temperature=1.0), expected, rtol=1e-5)


def test_a_class_both_exclude_costs_nothing() -> None:
    excluded = float("-inf")
    student = torch.tensor([[1.0, 2.0, excluded]], requires_grad=True)
    loss = soft_cross_entropy_loss(student, torch.tensor([[0.5, 0.1, excluded]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(soft_cross_entropy_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.1]])).item(), rel=1e-6)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="temperature is 0"):
        SoftCrossEntropy(temperature=0.0)
    with pytest.raises(RecipeError, match="temperature is -2"):
        soft_cross_entropy_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=-2.0)
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[2, 1\]"):
        soft_cross_entropy_loss(torch.zeros(2, 3), torch.zeros(2, 1))
