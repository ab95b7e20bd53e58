"""`response.dkd` against a loop in float64, its identity with `response.kd`, and labels that are none."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.core.schedule import Clock
from limbeck.core.task import Facts, Task
from limbeck.objectives.response.dkd import DKD, dkd_loss
from limbeck.objectives.response.kd import kd_loss


def softmax(logits: list[float], temperature: float) -> list[float]:
    odds = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    return [odd / sum(odds) for odd in odds]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive(student: list[float], teacher: list[float], label: int, temperature: float, alpha: float, beta: float) -> float:
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    target = kl([p[label], sum(p[:label] + p[label + 1 :])], [q[label], sum(q[:label] + q[label + 1 :])])
    rest = [[each[c] / (sum(each) - each[label]) for c in range(len(each)) if c != label] for each in (p, q)]
    return temperature**2 * (alpha * target + beta * kl(*rest))


def slope(row: list[float], c: int, *how: Any) -> float:
    """The central difference of the loop by logit c."""
    up, down = ([logit + sign * 1e-5 * (at == c) for at, logit in enumerate(row)] for sign in (1, -1))
    return (naive(up, *how) - naive(down, *how)) / 2e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 7), st.floats(1, 8), st.floats(0, 3), st.floats(0, 10), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(n: int, classes: int, temperature: float, alpha: float, beta: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(2, n, classes, generator=draw, dtype=torch.float64)).unbind()
    labels = torch.randint(classes, (n,), generator=draw)
    student.requires_grad_()
    loss = dkd_loss(student, teacher, labels, temperature=temperature, alpha=alpha, beta=beta)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    for row in range(n):
        how = teacher[row].tolist(), int(labels[row]), temperature, alpha, beta
        assert loss[row].item() == pytest.approx(naive(student[row].tolist(), *how), rel=1e-6, abs=1e-12)
        assert gradient[row].tolist() == pytest.approx([slope(student[row].tolist(), c, *how) for c in range(classes)], rel=1e-4, abs=1e-7)


def test_the_gradient_is_that_of_the_definition() -> None:
    teacher, labels = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda z: dkd_loss(z, teacher, labels, temperature=2.0), torch.randn(3, 5, dtype=torch.float64, requires_grad=True))


def test_with_the_teachers_doubt_as_beta_it_is_plain_distillation() -> None:
    student, teacher = torch.randn(2, 1, 6, dtype=torch.float64).mul(3).unbind()
    label = torch.tensor([2])
    doubt = 1 - (teacher / 4).softmax(-1)[0, 2].item()
    assert torch.allclose(dkd_loss(student, teacher, label, alpha=1.0, beta=doubt), kd_loss(student, teacher, temperature=4.0), rtol=1e-9)


def test_the_labels_logit_does_not_move_the_others_part() -> None:
    student, teacher = torch.randn(2, 1, 6).unbind()
    label = torch.tensor([2])
    for moved in (-1e4, 1e4):
        other = student.index_fill(-1, label, moved)
        assert torch.allclose(dkd_loss(other, teacher, label, alpha=0.0), dkd_loss(student, teacher, label, alpha=0.0), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 4), st.integers(1, 5))
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int) -> None:
    student, teacher = (scale * torch.randn(2, n, 3, classes)).to(dtype).unbind()
    loss = dkd_loss(student.requires_grad_(), teacher, torch.randint(classes, (n, 3)))
    assert loss.shape == (n, 3)
    check_sound(loss, student)


@pytest.mark.parametrize("label", [-100, 5])
def test_a_label_that_is_no_class_is_nan_and_spoils_no_gradient(label: int) -> None:
    student, teacher = torch.randn(2, 2, 5).unbind()
    loss = dkd_loss(student.requires_grad_(), teacher, torch.tensor([label, 1]))
    assert loss.isnan().tolist() == [True, False]
    (gradient,) = torch.autograd.grad(torch.where(torch.tensor([False, True]), loss, 0.0).sum(), student)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()


def test_a_class_that_both_exclude_is_none() -> None:
    student, teacher = torch.randn(2, 2, 4).unbind()
    closed = torch.full((2, 1), float("-inf"))
    wide = torch.cat([student, closed], -1).requires_grad_()
    loss = dkd_loss(wide, torch.cat([teacher, closed], -1), torch.tensor([0, 3]))
    assert torch.allclose(loss, dkd_loss(student, teacher, torch.tensor([0, 3])))
    assert torch.isfinite(torch.autograd.grad(loss.sum(), wide)[0]).all()


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4)])
def test_labels_that_are_not_one_number_each_are_refused(labels: Tensor) -> None:
    with pytest.raises(MismatchError, match=r"labels.*\[3, 4\].*integers \[3\]"):
        dkd_loss(torch.zeros(3, 4), torch.zeros(3, 4), labels)


def test_what_cannot_be_meant_is_refused() -> None:
    said = Knowledge({"main": Dense(torch.zeros(2, 3))})
    with pytest.raises(RecipeError, match="temperature is 0"):
        DKD(temperature=0.0)
    with pytest.raises(RecipeError, match="beta is -1"):
        dkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), beta=-1.0)
    with pytest.raises(MismatchError, match="labels"):
        DKD().bind(said, said, cast(Task, None), Facts(in_shape=(1,), classes=3, class_names=("a", "b", "c"), examples=2, labelled=False))


def test_its_weights_follow_their_schedules() -> None:
    dkd = build("objectives", "dkd", {"beta": {"kind": "linear", "start": 0, "end": 8, "epochs": 20}})
    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.arange(4)
    for epoch, beta in ((0, 0.0), (10, 4.0), (30, 8.0)):
        dkd.clock = Clock(epoch, 240)
        found = dkd(Knowledge({"main": Dense(student)}), Knowledge({"main": Dense(teacher)}), {"label": labels})
        assert torch.allclose(found, dkd_loss(student, teacher, labels, beta=beta))
