"""`feature.vid` against torch's Gaussian, and what it learns."""

import math
from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.vid import VID, vid_loss

NO_TASK = cast(Task, None)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4), (3, 4, 2, 3)])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_value_and_gradients_equal_a_loop(shape: tuple[int, ...], reduction: Literal["sum", "mean"]) -> None:
    mean, teacher = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    variance = (torch.rand(4, dtype=torch.float64) + 0.1).requires_grad_()
    losses: list[torch.Tensor] = []
    for row in range(3):
        terms = torch.zeros((), dtype=torch.float64)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in shape[1:])).reshape(-1, len(shape) - 1).tolist():
            spread = variance[index[0] if len(shape) == 4 else index[-1]]
            terms = terms + (teacher[row][tuple(index)] - mean[row][tuple(index)]) ** 2 / (2 * spread) + spread.sqrt().log()
        losses.append(terms / mean[0].numel() if reduction == "mean" else terms)
    loop, loss = torch.stack(losses), vid_loss(mean, teacher, variance, reduction=reduction)
    assert torch.allclose(loss, loop, rtol=1e-6)
    for one, other in zip(torch.autograd.grad(loss.sum(), (mean, variance)), torch.autograd.grad(loop.sum(), (mean, variance)), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_it_is_torchs_gaussian_but_for_the_constant() -> None:
    mean, teacher, variance = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.rand(4) + 0.1
    exact = -torch.distributions.Normal(mean, variance.sqrt().reshape(4, 1, 1)).log_prob(teacher).flatten(1).sum(1)
    assert torch.allclose(vid_loss(mean, teacher, variance), exact - 16 * math.log(2 * math.pi) / 2, rtol=1e-5)


def test_the_best_variance_is_the_mean_squared_error_and_it_is_learnt() -> None:
    teacher = torch.randn(64, 2) * torch.tensor([0.3, 3.0])
    vid = VID(layers={"s": "t"}, reduction="mean")
    student, theirs = Knowledge({}, {"s": torch.zeros(64, 2)}), Knowledge({}, {"t": teacher})
    vid.bind(student, theirs, NO_TASK, None)
    (regress,) = vid.regressors
    assert torch.allclose(regress(torch.zeros(1, 2))[1], torch.full((2,), 5.0))
    optimizer = torch.optim.Adam(vid.parameters(), lr=0.1)
    for _ in range(250):
        optimizer.zero_grad()
        vid(student, theirs, {}).mean().backward()
        optimizer.step()
    mean, variance = regress(torch.zeros(1, 2))
    assert torch.allclose(variance, (teacher - mean).square().mean(0), rtol=0.05)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3), (2, 5)), ((2, 4, 3), (2, 4, 5)), ((2, 3, 4, 4), (2, 5, 2, 2)), ((2, 5), (2, 5)), ((2, 3, 4, 4), (2, 17, 5))]
)
def test_the_regressor_gives_the_teachers_shape(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    vid = VID(layers={"s": "t"}, hidden=0.4)
    both = Knowledge({}, {"s": torch.randn(student).half()}), Knowledge({}, {"t": torch.randn(teacher).half()})
    vid.bind(*both, NO_TASK, None)
    (regress,) = vid.regressors
    mean, variance = regress(both[0].features["s"])
    assert (mean.shape, variance.shape) == (teacher, (5,))
    assert {p.shape[0] for name, p in regress.named_parameters() if name.startswith("mean")} == {2, 5}
    assert vid(*both, {}).shape == (2,)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[2, 4\].*\[3\]"):
        vid_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(3))
    with pytest.raises(MismatchError, match=r"variance \[2\]"):
        vid_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(MismatchError, match="has no places"):
        VID(layers={"s": "t"}).bind(Knowledge({}, {"s": torch.zeros(2, 4)}), Knowledge({}, {"t": torch.zeros(2, 4, 3, 3)}), NO_TASK, None)
    with pytest.raises(RecipeError, match="did you mean 'sum'"):
        VID(reduction=cast(Any, "summ"))
    with pytest.raises(RecipeError, match="hidden is 0"):
        VID(hidden=0.0)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 1, 1, 1), (2, 3, 5, 4), (1, 7, 1)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_feature_has_a_finite_loss_and_gradient(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student, teacher = ((torch.randn(shape) * scale).to(dtype) for _ in range(2))
    student.requires_grad_()
    vid = VID(layers={"s": "t"})
    both = Knowledge({}, {"s": student}), Knowledge({}, {"t": teacher})
    vid.bind(*both, NO_TASK, None)
    loss = vid(*both, {})
    check_sound(loss, student)
