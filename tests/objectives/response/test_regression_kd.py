"""`response.regression_kd` against loops in float64: the teacher as a bound, and the teacher itself."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Facts, Task
from limbeck.objectives.response.logit_matching import logit_matching_loss
from limbeck.objectives.response.regression_kd import Distance, RegressionKD, regression_kd_loss, teacher_bounded_loss

DISTANCES: list[Distance] = ["l2", "l1", "smooth_l1"]


def apart(x: float, y: float, distance: Distance) -> float:
    gap = abs(x - y)
    return {"l2": gap**2, "l1": gap, "smooth_l1": gap**2 / 2 if gap < 1 else gap - 0.5}[distance]


def slope(x: float, y: float, distance: Distance) -> float:
    gap = x - y
    return {"l2": 2 * gap, "l1": (gap > 0) - (gap < 0), "smooth_l1": max(-1.0, min(1.0, gap))}[distance]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(DISTANCES), st.integers(1, 5), st.integers(1, 4), st.floats(0, 2), st.integers(0, 10**6))
def test_values_and_gradients_equal_loops(distance: Distance, n: int, size: int, margin: float, seed: int) -> None:
    student, teacher, truth = torch.randn(3, n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    student.requires_grad_()
    for bounded in (False, True):
        towards = truth if bounded else teacher
        loss = (
            teacher_bounded_loss(student, teacher, truth, margin=margin, distance=distance)
            if bounded
            else regression_kd_loss(student, teacher, distance=distance)
        )
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        for row in range(n):
            error, bound = (sum(apart(x, y, distance) for x, y in zip(side[row].tolist(), towards[row].tolist(), strict=True)) for side in (student, teacher))
            pays = not bounded or error + margin > bound
            assert loss[row].item() == pytest.approx(error if pays else 0.0, rel=1e-6)
            expected = [slope(x, y, distance) * pays for x, y in zip(student[row].tolist(), towards[row].tolist(), strict=True)]
            assert gradient[row].tolist() == pytest.approx(expected, rel=1e-6)


def test_it_is_pytorchs_losses_and_a_multiple_of_logit_matching() -> None:
    student, teacher = torch.randn(2, 4, 3).unbind()
    assert torch.allclose(regression_kd_loss(student, teacher).mean(), 3 * F.mse_loss(student, teacher))
    assert torch.allclose(regression_kd_loss(student, teacher, distance="smooth_l1").mean(), 3 * F.smooth_l1_loss(student, teacher))
    assert torch.allclose(regression_kd_loss(student, teacher), 6 * logit_matching_loss(student, teacher))


def test_who_equals_the_teacher_pays_only_for_a_margin_and_a_perfect_teacher_bounds_nothing() -> None:
    teacher, truth = torch.randn(2, 4, 3).unbind()
    assert not teacher_bounded_loss(teacher, teacher, truth).any()
    assert torch.allclose(teacher_bounded_loss(teacher, teacher, truth, margin=1e-3), (teacher - truth).square().sum(-1))
    assert torch.allclose(teacher_bounded_loss(teacher, truth, truth), (teacher - truth).square().sum(-1))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from(DISTANCES),
    st.integers(1, 4),
)
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, distance: Distance, size: int) -> None:
    scale = min(scale, 1e3) if dtype == torch.float16 else scale  # the gradient, twice the difference, must fit into 65504
    student, teacher = (scale * torch.randn(2, 3, size)).to(dtype).unbind()
    student.requires_grad_()
    for loss in (regression_kd_loss(student, teacher, distance=distance), teacher_bounded_loss(student, teacher, torch.randn(3, size), distance=distance)):
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()


def test_nan_is_no_success() -> None:
    nan = torch.full((1, 2), float("nan"))
    assert teacher_bounded_loss(nan, torch.zeros(1, 2), torch.zeros(1, 2)).isnan().all()
    assert teacher_bounded_loss(torch.zeros(1, 2), torch.zeros(1, 2), nan).isnan().all()


def test_one_number_each_may_have_labels_without_an_axis_and_other_labels_are_refused() -> None:
    student, teacher = torch.randn(2, 4, 1).unbind()
    assert torch.equal(teacher_bounded_loss(student, teacher, torch.arange(4)), teacher_bounded_loss(student, teacher, torch.arange(4.0)[:, None]))
    with pytest.raises(MismatchError, match=r"labels are \[4\].*\[4, 3\]"):
        teacher_bounded_loss(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(MismatchError, match=r"\[4, 3\].*\[4, 1\]"):
        regression_kd_loss(torch.zeros(4, 3), torch.zeros(4, 1))


def test_it_needs_labels_for_a_margin_alone() -> None:
    assert RegressionKD().needs.labels
    assert not RegressionKD(margin=None).needs.labels
    numbers = Knowledge({"main": Dense(torch.zeros(2, 3), "identity")})
    unlabelled = Facts(in_shape=(1,), classes=3, class_names=("a", "b", "c"), examples=2, labelled=False)
    with pytest.raises(MismatchError, match="RegressionKD needs labels"):
        RegressionKD().bind(numbers, numbers, cast(Task, None), unlabelled)
    RegressionKD(margin=None).bind(numbers, numbers, cast(Task, None), unlabelled)


def test_the_class_is_its_leaves() -> None:
    student, teacher, truth = torch.randn(3, 4, 2).unbind()
    sides = Knowledge({"main": Dense(student, "identity")}), Knowledge({"main": Dense(teacher, "identity")})
    assert torch.equal(RegressionKD(margin=0.5)(*sides, {"label": truth}), teacher_bounded_loss(student, teacher, truth, margin=0.5))
    assert torch.equal(RegressionKD(margin=None, distance="l1")(*sides, {}), regression_kd_loss(student, teacher, distance="l1"))


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="margin is -1"):
        RegressionKD(margin=-1.0)
    with pytest.raises(RecipeError, match=r"did you mean 'l[12]'"):
        RegressionKD(distance=cast(Any, "L1"))
