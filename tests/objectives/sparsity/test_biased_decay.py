"""`sparsity.biased_decay` against a loop, and its pull: strongest at zero, weak where much is."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Clock, Linear
from limbeck.core.task import default_task
from limbeck.objectives.sparsity.biased_decay import BiasedDecay, biased_decay_loss

BIASES: Any = pytest.mark.parametrize("bias", ["hyperbolic", "exponential"])
EACH: Any = pytest.mark.parametrize("each", ["unit", "weight"])


def cost(s: float, steepness: float, bias: str) -> tuple[float, float]:
    """B(s) and its derivative."""
    if bias == "hyperbolic":
        return s / (1 + steepness * s), 1 / (1 + steepness * s) ** 2
    return 1 - math.exp(-steepness * s), steepness * math.exp(-steepness * s)


@BIASES
@EACH
@settings(max_examples=10, deadline=None)
@given(units=st.integers(1, 4), size=st.integers(1, 5), steepness=st.floats(0.1, 5), seed=st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(bias: Any, each: Any, units: int, size: int, steepness: float, seed: int) -> None:
    weights = torch.randn(units, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    loss = biased_decay_loss(weights, bias=bias, each=each, steepness=steepness)
    (gradient,) = torch.autograd.grad(loss, weights)
    total = 0.0
    for unit, row in enumerate(weights.tolist()):
        whole = sum(abs(w) for w in row)
        for at, w in enumerate(row):
            value, slope = cost(whole if each == "unit" else abs(w), steepness, bias)
            total += value / size if each == "unit" else value
            assert gradient[unit, at].item() == pytest.approx(math.copysign(slope, w), rel=1e-9)
    assert loss.item() == pytest.approx(total, rel=1e-9)


@BIASES
def test_units_of_one_weight_are_weights_and_a_flat_bias_is_the_lasso(bias: Any) -> None:
    weights = torch.randn(9, 1, dtype=torch.float64)
    assert torch.equal(biased_decay_loss(weights, bias=bias, each="unit"), biased_decay_loss(weights, bias=bias, each="weight"))
    factor = 1.0 if bias == "hyperbolic" else 1e-7  # 1 - exp(-x) is x near zero
    assert biased_decay_loss(weights, bias=bias, steepness=1e-7).item() == pytest.approx(factor * weights.abs().sum().item(), rel=1e-5)


@BIASES
@EACH
def test_what_is_small_decays_and_what_is_large_is_spared(bias: Any, each: Any) -> None:
    weights = torch.tensor([[0.01, -0.01], [5.0, -5.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(biased_decay_loss(weights, bias=bias, each=each, steepness=1.0), weights)
    assert (gradient.sign() == weights.sign()).all()
    assert (gradient[0].abs() > 20 * gradient[1].abs()).all()


def test_into_a_unit_all_weights_are_pulled_alike_however_small() -> None:
    weights = torch.tensor([[4.0, 0.001]], requires_grad=True)
    (gradient,) = torch.autograd.grad(biased_decay_loss(weights, each="unit"), weights)
    assert gradient[0, 0] == gradient[0, 1] < 0.05
    (gradient,) = torch.autograd.grad(biased_decay_loss(weights, each="weight"), weights)
    assert gradient[0, 1] > 0.9


@BIASES
@pytest.mark.parametrize("scale", [0.0, 1e-8, 6e4])
def test_loss_and_gradient_are_finite_everywhere(bias: Any, scale: float) -> None:
    weights = (scale * torch.ones(2, 3)).half().requires_grad_()
    loss = biased_decay_loss(weights, bias=bias, steepness=100.0)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert torch.autograd.grad(loss, weights)[0].isfinite().all()


def test_a_filter_is_a_unit_and_the_steepness_follows_its_schedule() -> None:
    layer = nn.Conv2d(2, 3, 3)
    objective = BiasedDecay(steepness=Linear(start=1.0, end=3.0), layers=["conv"])
    student = Knowledge({}, modules={"conv": layer})
    objective.bind(student, None, default_task(), None)
    for epoch, steepness in ((0.0, 1.0), (5.0, 2.0), (10.0, 3.0)):
        objective.clock = Clock(epoch, 10.0)
        sizes = layer.weight.abs().sum((1, 2, 3))
        assert objective(student, None, {}).item() == pytest.approx((sizes / (1 + steepness * sizes)).sum().item(), rel=1e-5)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="steepness is 0"):
        BiasedDecay(steepness=0.0)
    with pytest.raises(RecipeError, match="steepness is 0"):
        BiasedDecay(steepness=Linear(start=1.0, end=0.0))
    with pytest.raises(RecipeError, match=r"no bias 'hyperbolc'.*'hyperbolic'"):
        BiasedDecay(bias="hyperbolc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(MismatchError, match="row of weights"):
        biased_decay_loss(torch.ones(3))
