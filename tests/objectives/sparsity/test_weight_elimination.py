"""`sparsity.weight_elimination` against a loop, and its two ends: decay below w_0, a count above it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Clock, Linear
from limbeck.core.task import default_task
from limbeck.objectives.sparsity.weight_elimination import WeightElimination, weight_elimination_loss


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0.05, 5))
def test_value_and_gradient_equal_a_loop(values: list[float], scale: float) -> None:
    weights = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    loss = weight_elimination_loss(weights, scale=scale)
    (gradient,) = torch.autograd.grad(loss, weights)
    ratios = [w / scale for w in values]
    assert loss.item() == pytest.approx(sum(r**2 / (1 + r**2) for r in ratios), rel=1e-9, abs=1e-30)
    assert gradient.tolist() == pytest.approx([2 * r / (1 + r**2) ** 2 / scale for r in ratios], rel=1e-9, abs=1e-30)


def test_far_below_the_scale_it_is_weight_decay_and_far_above_it_a_count() -> None:
    weights = torch.randn(50, dtype=torch.float64)
    assert weight_elimination_loss(weights, scale=1e4).item() == pytest.approx((weights / 1e4).square().sum().item(), rel=1e-6)
    kept = torch.tensor([0.0, 3.0, -7.0, 0.0, 0.5])
    assert weight_elimination_loss(kept, scale=1e-4).item() == pytest.approx(3.0, rel=1e-6)
    assert weight_elimination_loss(torch.tensor([0.2, -0.2]), scale=0.2).item() == pytest.approx(1.0)


def test_the_pull_is_strongest_below_the_scale_and_the_units_of_weights_do_not_matter() -> None:
    """The slope 2r / (1 + r^2)^2 is largest at r = 1/sqrt(3)."""
    weights = torch.linspace(0, 4, 4001, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(weight_elimination_loss(weights, scale=1.0), weights)
    assert weights[gradient.argmax()].item() == pytest.approx(3**-0.5, abs=1e-3)
    assert weight_elimination_loss(10 * weights, scale=10.0).item() == pytest.approx(weight_elimination_loss(weights).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [0.0, 1e-7, 6e4, 1e30])
def test_loss_and_gradient_are_finite_everywhere(dtype: torch.dtype, value: float) -> None:
    weights = torch.full((3,), min(value, torch.finfo(dtype).max), dtype=dtype, requires_grad=True)
    loss = weight_elimination_loss(weights, scale=1e-2)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert torch.autograd.grad(loss, weights)[0].isfinite().all()


def test_the_scale_follows_its_schedule_and_none_below_zero_is_taken() -> None:
    layer = nn.Linear(3, 2)
    objective, student = WeightElimination(scale=Linear(start=1.0, end=0.5), layers=["layer"]), Knowledge({}, modules={"layer": layer})
    objective.bind(student, None, default_task(), None)
    objective.clock = Clock(4.0, 4.0)
    assert objective(student, None, {}).item() == pytest.approx(weight_elimination_loss(layer.weight, scale=0.5).item())
    with pytest.raises(RecipeError, match="scale is -1"):
        WeightElimination(scale=-1.0)
