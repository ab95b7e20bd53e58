"""`sparsity.group_lasso` against a loop, its identities, and what its pull does to groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import default_task
from limbeck.objectives.sparsity.group_lasso import GroupLasso, group_lasso_loss


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.booleans(), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(groups: int, size: int, scaled: bool, seed: int) -> None:
    weights = torch.randn(groups, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    loss = group_lasso_loss(weights, scaled=scaled)
    (gradient,) = torch.autograd.grad(loss, weights)
    total, factor = 0.0, math.sqrt(size) if scaled else 1.0
    for g, row in enumerate(weights.tolist()):
        norm = math.sqrt(sum(w * w for w in row))
        total += factor * norm
        assert gradient[g].tolist() == pytest.approx([factor * w / norm for w in row], rel=1e-9)
    assert loss.item() == pytest.approx(total, rel=1e-9)
    assert torch.autograd.gradcheck(lambda w: group_lasso_loss(w, scaled=scaled), weights)


def test_groups_of_one_are_the_plain_lasso_and_one_group_is_the_norm() -> None:
    weights = torch.randn(12, dtype=torch.float64)
    assert group_lasso_loss(weights[:, None]).item() == pytest.approx(weights.abs().sum().item())
    assert group_lasso_loss(weights[None], scaled=False).item() == pytest.approx(weights.norm().item())


def test_with_the_square_root_k_equal_weights_cost_k_times_one_however_they_are_grouped() -> None:
    weights = torch.full((24,), 0.5)
    assert {round(group_lasso_loss(weights.view(rows, -1)).item(), 4) for rows in (1, 2, 6, 24)} == {12.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 3e4])
def test_loss_and_gradient_are_finite_at_zero_and_far_from_it(dtype: torch.dtype, scale: float) -> None:
    weights = (scale * torch.ones(3, 4)).to(dtype).requires_grad_()
    loss = group_lasso_loss(weights)
    assert loss.dtype == torch.float32 and loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.isfinite().all()
    assert (gradient == 0).all() if scale == 0 else True


@pytest.mark.parametrize(("groups", "dim"), [("output", 1), ("input", 0)])
def test_proximal_flow_takes_whole_channels_and_spares_those_the_data_need(groups: str, dim: int) -> None:
    """Least squares on inputs of which two are noise: groups of inputs vanish, groups of outputs do not."""
    x = torch.randn(256, 4)
    y = x[:, :2] @ torch.tensor([[1.0, -2.0, 0.5], [0.7, 1.0, -1.0]])
    layer = nn.Linear(4, 3, bias=False)
    objective, student = GroupLasso(groups=groups, layers=["layer"]), Knowledge({}, modules={"layer": layer})  # pyright: ignore[reportArgumentType]
    objective.bind(student, None, default_task(), None)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(300):
        ((layer(x) - y).square().mean() + 0.02 * objective(student, None, {})).backward()
        optimizer.step()
        optimizer.zero_grad()
    norms = layer.weight.detach().norm(dim=dim)
    assert (norms > 0.3).all() if groups == "output" else (norms[:2] > 0.3).all() and (norms[2:] < 0.02).all()


def test_a_layer_is_one_group_and_what_cannot_be_meant_is_refused() -> None:
    layer = nn.Conv2d(2, 3, 3)
    objective, student = GroupLasso(groups="layer", layers=["conv"]), Knowledge({}, modules={"conv": layer})
    objective.bind(student, None, default_task(), None)
    assert objective(student, None, {}).item() == pytest.approx(math.sqrt(54) * layer.weight.norm().item(), rel=1e-5)
    with pytest.raises(MismatchError, match="row of weights"):
        group_lasso_loss(torch.ones(2, 3, 4))
    with pytest.raises(RecipeError, match=r"no groups 'outputs'.*'output'"):
        GroupLasso(groups="outputs")  # pyright: ignore[reportArgumentType]
