"""`response.kd` against a loop in float64, the limits that the paper names, and the ends of the number line."""

import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.core.schedule import Clock, Linear
from limbeck.core.task import Task
from limbeck.objectives.response.kd import KD, kd_loss

INF = float("inf")


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    odds = [math.exp((logit - top) / temperature) for logit in logits]
    return [odd / sum(odds) for odd in odds]


def naive(student: Sequence[float], teacher: Sequence[float], temperature: float) -> tuple[float, list[float]]:
    """T^2 KL(p || q) of one prediction, and its gradient T (q - p)."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    loss = sum(p_c * math.log(p_c / q_c) for p_c, q_c in zip(p, q, strict=True) if p_c > 0)
    return temperature**2 * loss, [temperature * (q_c - p_c) for p_c, q_c in zip(p, q, strict=True)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 12), st.floats(0.1, 20), st.floats(0.5, 20), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop_in_float64(n: int, classes: int, scale: float, temperature: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, n, classes, generator=draw, dtype=torch.float64)).unbind()
    student.requires_grad_()
    loss = kd_loss(student, teacher, temperature=temperature)
    loss.sum().backward()
    assert student.grad is not None
    for row in range(n):
        value, gradient = naive(student[row].tolist(), teacher[row].tolist(), temperature)
        assert loss[row].item() == pytest.approx(value, rel=1e-6, abs=1e-12)
        assert student.grad[row].tolist() == pytest.approx(gradient, rel=1e-6, abs=1e-10)


def test_float32_is_as_exact_as_float32_can_be() -> None:
    student, teacher = torch.randn(2, 64, 10).mul(3).unbind()
    exact = kd_loss(student.double(), teacher.double())
    assert torch.allclose(kd_loss(student, teacher).double(), exact, rtol=1e-5, atol=1e-6)


def test_it_is_what_pytorch_users_write() -> None:
    student, teacher = torch.randn(2, 8, 10).unbind()
    written = 16 * F.kl_div(F.log_softmax(student / 4, -1), F.softmax(teacher / 4, -1), reduction="batchmean")
    assert kd_loss(student, teacher, temperature=4.0).mean().item() == pytest.approx(written.item(), rel=1e-5)


def test_a_low_temperature_leaves_the_cross_entropy_with_the_teachers_choice() -> None:
    student = torch.randn(16, 10, dtype=torch.float64)
    teacher = torch.stack([torch.randperm(10) for _ in range(16)]).double()
    temperature = 0.001  # T KL tends to max z - z at the teacher's choice: the student pays for the lead of its own
    limit = student.max(-1).values - student.gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)
    assert torch.allclose(kd_loss(student, teacher, temperature=temperature) / temperature, limit, atol=0.01)


def test_soft_targets_of_one_hot_logits_at_temperature_one_are_the_cross_entropy() -> None:
    student, labels = torch.randn(6, 5), torch.arange(6) % 5
    teacher = torch.full((6, 5), -INF).scatter_(-1, labels[:, None], 0.0)
    assert torch.allclose(kd_loss(student, teacher, temperature=1.0), F.cross_entropy(student, labels, reduction="none"), rtol=1e-5)


def test_the_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    student, teacher = torch.randn(2, 32, 10, dtype=torch.float64).unbind()
    sizes = []
    for temperature in (20.0, 80.0):
        leaf = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(kd_loss(leaf, teacher, temperature=temperature).sum(), leaf)
        sizes.append(gradient.norm())
    assert sizes[0].item() == pytest.approx(sizes[1].item(), rel=0.05)


def test_identical_logits_cost_exactly_nothing() -> None:
    student = torch.randn(16, 10).mul(100).requires_grad_()
    loss = kd_loss(student, student.detach().clone())
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(16))
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e4, 3e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_logits_of_ten_thousands_stay_exact(scale: float, dtype: torch.dtype) -> None:
    student, teacher = torch.tensor([[scale, -scale, 0.0]], dtype=dtype, requires_grad=True), torch.tensor([[-scale, scale, 0.0]], dtype=dtype)
    loss = kd_loss(student, teacher, temperature=4.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(16 * 2 * student[0, 0].item() / 4, rel=1e-6)
    assert student.grad is not None
    assert student.grad.tolist() == [[4.0, -4.0, 0.0]]


def test_a_class_the_teacher_excludes_asks_nothing() -> None:
    student = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, -INF]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[0.3, 0.1, -INF]]).expand(2, 3), temperature=2.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([naive(row, [0.3, 0.1, -INF], 2.0)[0] for row in student.tolist()], rel=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad[1, 2] == 0


def test_a_class_only_the_student_excludes_costs_without_bound_and_nan_is_not_hidden() -> None:
    assert kd_loss(torch.tensor([[0.0, -INF]]), torch.zeros(1, 2)).item() == INF
    assert kd_loss(torch.tensor([[0.0, float("nan")]]), torch.tensor([[0.0, -INF]])).isnan().all()
    assert kd_loss(torch.zeros(1, 2), torch.tensor([[0.0, float("nan")]])).isnan().all()


def test_every_axis_but_the_last_counts_predictions() -> None:
    student, teacher = torch.randn(2, 3, 4, 5).unbind()
    assert torch.allclose(kd_loss(student, teacher), kd_loss(student.reshape(12, 5), teacher.reshape(12, 5)).reshape(3, 4))


def test_unequal_shapes_are_refused_where_they_would_broadcast() -> None:
    with pytest.raises(MismatchError, match=r"\[3, 10\].*\[1, 10\]"):
        kd_loss(torch.zeros(3, 10), torch.zeros(1, 10))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, INF, Linear(start=4, end=0)])
def test_a_temperature_that_is_none_is_refused_at_once(temperature: float | Linear) -> None:
    with pytest.raises(RecipeError, match="temperature"):
        KD(temperature=temperature)
    if not isinstance(temperature, Linear):
        with pytest.raises(RecipeError, match="temperature"):
            kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


def test_the_temperature_follows_its_schedule_also_when_compiled() -> None:
    kd = build("objectives", "kd", {"temperature": {"kind": "linear", "start": 8, "end": 2, "epochs": 4}})
    student, teacher = torch.randn(2, 4, 5).unbind()
    knowledge = Knowledge({"main": Dense(student)}), Knowledge({"main": Dense(teacher)})
    torch.compiler.reset()
    compiled = torch.compile(kd, backend="aot_eager", fullgraph=True)
    for epoch, temperature in ((0, 8.0), (2, 5.0), (9, 2.0)):
        kd.clock = Clock(epoch, 10)
        expected = kd_loss(student, teacher, temperature=temperature)
        assert torch.equal(kd(*knowledge, {}), expected)
        assert torch.allclose(compiled(*knowledge, {}), expected, rtol=1e-5)


def test_the_gradient_can_be_differentiated_again() -> None:
    student, teacher = torch.randn(2, 2, 4, dtype=torch.float64).unbind()
    assert torch.autograd.gradgradcheck(lambda z: kd_loss(z, teacher, temperature=2.0), student.requires_grad_())


def test_answers_that_choose_no_class_are_sent_elsewhere() -> None:
    numbers = Knowledge({"main": Dense(torch.zeros(2, 3), "identity")})
    with pytest.raises(MismatchError, match=r"KD.*identity.*response\.logit_matching"):
        KD().bind(numbers, numbers, cast(Task, None), None)
