"""`response.bernoulli_kd` against a loop in float64, and as a softmax over yes and no."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.response.bernoulli_kd import BernoulliKD, bernoulli_kd_loss
from limbeck.objectives.response.kd import kd_loss


def naive(student: list[float], teacher: list[float], temperature: float) -> tuple[float, list[float]]:
    q, p = ([1 / (1 + math.exp(-logit / temperature)) for logit in side] for side in (student, teacher))
    loss = sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * loss, [temperature * (b - a) for a, b in zip(p, q, strict=True)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.floats(0.5, 10), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(n: int, classes: int, temperature: float, seed: int) -> None:
    student, teacher = (2 * torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).unbind()
    loss = bernoulli_kd_loss(student.requires_grad_(), teacher, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    for row in range(n):
        value, expected = naive(student[row].tolist(), teacher[row].tolist(), temperature)
        assert loss[row].item() == pytest.approx(value, rel=1e-6, abs=1e-12)
        assert gradient[row].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert torch.allclose(bernoulli_kd_loss(student, teacher, temperature=temperature, reduction="mean") * classes, loss)


def test_each_answer_is_a_choice_between_two_classes() -> None:
    student, teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64).unbind()
    yes_no = [torch.stack([side, torch.zeros_like(side)], -1) for side in (student, teacher)]
    loss = bernoulli_kd_loss(student, teacher, temperature=3.0)
    assert loss.shape == (3, 4)
    assert torch.allclose(loss, kd_loss(yes_no[0], yes_no[1], temperature=3.0).sum(-1))


def test_a_certain_teacher_asks_the_cross_entropy_with_its_answers() -> None:
    student, answers = torch.randn(4, 5), (torch.arange(20).reshape(4, 5) % 3 == 0).float()
    expected = F.binary_cross_entropy_with_logits(student, answers, reduction="none").sum(-1)
    for certain in (1e4, float("inf")):
        assert torch.allclose(bernoulli_kd_loss(student, (2 * answers - 1) * certain), expected, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 4), st.integers(1, 5))
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int) -> None:
    student, teacher = (scale * torch.randn(2, n, classes)).to(dtype).unbind()
    loss = bernoulli_kd_loss(student.requires_grad_(), teacher)
    check_sound(loss, student)


def test_what_is_no_yes_or_no_is_sent_elsewhere() -> None:
    chosen = Knowledge({"main": Dense(torch.zeros(2, 3), "softmax")})
    with pytest.raises(MismatchError, match=r"BernoulliKD.*bernoulli.*softmax: use response\.kd"):
        BernoulliKD().bind(chosen, chosen, cast(Task, None), None)
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        BernoulliKD(reduction=cast(Any, "means"))
    with pytest.raises(RecipeError, match="temperature is 0"):
        BernoulliKD(temperature=0.0)
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[2, 1\]"):
        bernoulli_kd_loss(torch.zeros(2, 3), torch.zeros(2, 1))


def test_the_class_is_its_leaf() -> None:
    student, teacher = torch.randn(2, 4, 5).unbind()
    found = BernoulliKD(temperature=2.0, reduction="mean")(
        Knowledge({"main": Dense(student, "bernoulli")}), Knowledge({"main": Dense(teacher, "bernoulli")}), {}
    )
    assert torch.equal(found, bernoulli_kd_loss(student, teacher, temperature=2.0, reduction="mean"))
