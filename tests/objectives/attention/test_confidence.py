"""`attention.confidence` against a loop, the weight that its loss is least at, and what the network learns of noise."""

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.schedule import Clock, Linear
from limbeck.core.task import Task
from limbeck.objectives.attention.confidence import Confidence, confidence_loss

NO_TASK = cast(Task, None)


def sides(student: Tensor, teacher: Tensor) -> tuple[Knowledge, Knowledge]:
    return tuple(Knowledge({"main": Dense(torch.zeros(len(one), 3))}, {"x": one}) for one in (student, teacher))  # pyright: ignore[reportReturnType]


def test_it_equals_a_loop() -> None:
    student, teacher = torch.randn(2, 3, 4, 2, 5, dtype=torch.float64).unbind()
    doubt = torch.rand(3, 10, dtype=torch.float64)
    student.requires_grad_()
    for row in range(3):
        size = sum(x**2 for x in teacher[row].flatten().tolist()) / 40
        total = 0.0
        for h in range(2):
            for w in range(5):
                mismatch = sum((student[row, c, h, w].item() - teacher[row, c, h, w].item()) ** 2 for c in range(4)) / 4 / size
                s = doubt[row, 5 * h + w].item()
                total += math.exp(-s) * mismatch + 0.5 * s
        assert confidence_loss(student, teacher, doubt, tolerance=0.5)[row].item() == pytest.approx(total / 10, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x, s: confidence_loss(x, teacher, s), (student, doubt.requires_grad_()), rtol=1e-6)


@pytest.mark.parametrize(("mismatch", "tolerance"), [(4.0, 1.0), (9.0, 2.0), (0.25, 1.0), (1.0, 1.0)])
def test_the_best_weight_is_the_tolerance_over_the_mismatch_and_never_above_one(mismatch: float, tolerance: float) -> None:
    doubts = torch.linspace(0, 5, 5001, dtype=torch.float64).reshape(-1, 1)
    teacher = torch.ones(5001, 1, dtype=torch.float64)
    losses = confidence_loss(teacher + math.sqrt(mismatch), teacher, doubts, tolerance=tolerance)
    best = doubts[losses.argmin()].item()
    assert math.exp(-best) == pytest.approx(min(1, tolerance / mismatch), rel=1e-3)
    least = mismatch if mismatch <= tolerance else tolerance * (1 + math.log(mismatch / tolerance))
    assert losses.min().item() == pytest.approx(least, rel=1e-5)


def test_without_doubt_it_is_the_relative_squared_error_whatever_the_scale() -> None:
    student, teacher = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    plain = (student - teacher).square().mean((1, 2)) / teacher.square().mean((1, 2))
    assert torch.allclose(confidence_loss(student, teacher, torch.zeros(2, 3)), plain, rtol=1e-5)
    assert torch.allclose(confidence_loss(1e3 * student, 1e3 * teacher, torch.zeros(2, 3)), plain, rtol=1e-5)
    silent = confidence_loss(torch.ones(1, 4), torch.zeros(1, 4), torch.zeros(1, 1))
    assert silent.item() == 1


def test_it_learns_to_doubt_the_places_that_cannot_be_matched() -> None:
    """The sign of the teacher's first channel tells noise from rule: a place of noise is worth log of its mismatch, one of the rule its whole."""
    part = Confidence(layers={"x": "x"}, width=8)
    told = torch.randn(32, 3, 4, 4).sign()
    noisy = told[:, 0] > 0
    student = told + torch.where(noisy.unsqueeze(1), 3.0, 0.1) * torch.randn_like(told)
    part.bind(*sides(student, told), NO_TASK, None)
    optimizer = torch.optim.Adam(part.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        part(*sides(student, told), {}).mean().backward()
        optimizer.step()
    weight = (-part.doubts[0](told.flatten(2).transpose(1, 2)).detach().squeeze(-1)).exp().reshape(32, 4, 4)
    assert weight[noisy].mean() == pytest.approx(1 / 9, abs=0.05)
    assert weight[~noisy].mean() > 0.9


def test_a_weight_for_each_place_or_example_and_a_projector_where_shapes_differ() -> None:
    for mine, its, places in [((2, 4, 3, 3), (2, 6, 5, 5), 25), ((2, 3, 4), (2, 3, 6), 3), ((2, 4), (2, 6), 1)]:
        student, teacher = sides(torch.randn(mine), torch.randn(its))
        part = Confidence(layers={"x": "x"}, tolerance=Linear(start=1.0, end=3.0))
        part.bind(student, teacher, NO_TASK, None)
        doubt = part.doubts[0](torch.randn(2, places, 6))
        assert doubt.shape == (2, places, 1)
        assert 0.5 < (-doubt).exp().min() <= (-doubt).exp().max() < 1
        early = part(student, teacher, {})
        part.clock = Clock(10, 10)
        assert (part(student, teacher, {}) > early).all()


@given(
    shape=st.sampled_from([(1, 1), (3, 2), (1, 1, 3), (2, 3, 4), (1, 1, 1, 1), (2, 3, 5, 4)]), scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_finite_for_every_shape_scale_and_dtype(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    teacher = scale * torch.randn(shape)
    student = (teacher + scale * torch.randn(shape)).to(dtype).requires_grad_()
    part = Confidence(layers={"x": "x"})
    ours, theirs = sides(student, (teacher + scale * teacher.sign()).to(dtype))
    part.bind(ours, theirs, NO_TASK, None)
    loss = part(ours, theirs, {})
    check_sound(loss, student)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 6\].*project"):
        confidence_loss(torch.zeros(2, 4), torch.zeros(2, 6), torch.zeros(2, 1))
    with pytest.raises(MismatchError, match=r"doubt is \[2, 3\].*\[2, 1\]"):
        confidence_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(RecipeError, match="tolerance is 0"):
        Confidence(tolerance=0)
    with pytest.raises(RecipeError, match="width is 0"):
        Confidence(width=0)
