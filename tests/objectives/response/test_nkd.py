"""`response.nkd` against a loop in float64, and where its two parts lead."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.objectives.response.dkd import dkd_loss
from limbeck.objectives.response.nkd import NKD, nkd_loss


def softmax(logits: Sequence[float]) -> list[float]:
    odds = [math.exp(logit - max(logits)) for logit in logits]
    return [odd / sum(odds) for odd in odds]


def naive(student: Sequence[float], teacher: Sequence[float], label: int, temperature: float, gamma: float) -> tuple[float, list[float]]:
    """The loss of one prediction, and its gradient: p_y (q - e_y), and gamma T (Q - P) among the others."""
    q, p = softmax(student), softmax(teacher)
    rest = [c for c in range(len(q)) if c != label]
    big_q, big_p = (softmax([side[c] / temperature for c in rest]) for side in (student, teacher))
    loss = -p[label] * math.log(q[label]) - gamma * temperature**2 * sum(a * math.log(b) for a, b in zip(big_p, big_q, strict=True))
    gradient = [p[label] * (q[c] - (c == label)) for c in range(len(q))]
    for c, a, b in zip(rest, big_p, big_q, strict=True):
        gradient[c] += gamma * temperature * (b - a)
    return loss, gradient


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.floats(0.5, 8), st.floats(0, 5), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(n: int, classes: int, temperature: float, gamma: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(2, n, classes, generator=draw, dtype=torch.float64)).unbind()
    labels = torch.randint(classes, (n,), generator=draw)
    loss = nkd_loss(student.requires_grad_(), teacher, labels, temperature=temperature, gamma=gamma)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    for row in range(n):
        value, expected = naive(student[row].tolist(), teacher[row].tolist(), int(labels[row]), temperature, gamma)
        assert loss[row].item() == pytest.approx(value, rel=1e-6)
        assert gradient[row].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_others_part_pulls_as_that_of_dkd_does() -> None:
    student, teacher, labels = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64), torch.arange(4)
    sure = teacher.index_put((torch.arange(4), labels), torch.tensor(-1e9, dtype=torch.float64))  # p_y = 0 leaves that part alone
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    nkd_loss(one, sure, labels, temperature=3.0, gamma=2.0).sum().backward()
    dkd_loss(other, sure, labels, temperature=3.0, alpha=0.0, beta=2.0).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.allclose(one.grad, other.grad)


def test_a_certain_teacher_without_gamma_is_the_cross_entropy() -> None:
    student, labels = torch.randn(6, 5), torch.arange(6) % 5
    teacher = 1e4 * F.one_hot(labels, 5)
    assert torch.allclose(nkd_loss(student, teacher, labels, gamma=0.0), F.cross_entropy(student, labels, reduction="none"), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 4), st.integers(1, 5))
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int) -> None:
    student, teacher = (scale * torch.randn(2, n, 3, classes)).to(dtype).unbind()
    loss = nkd_loss(student.requires_grad_(), teacher, torch.randint(classes, (n, 3)))
    assert loss.shape == (n, 3)
    check_sound(loss, student)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="gamma is -1"):
        NKD(gamma=-1.0)
    with pytest.raises(RecipeError, match="temperature is 0"):
        nkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), temperature=0.0)
    with pytest.raises(MismatchError, match=r"\[3\].*\[2, 4\]"):
        nkd_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
    assert nkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([-100])).isnan().all()


def test_the_class_is_its_leaf() -> None:
    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.arange(4)
    found = NKD(temperature=2.0, gamma=0.5)(Knowledge({"main": Dense(student)}), Knowledge({"main": Dense(teacher)}), {"label": labels})
    assert torch.equal(found, nkd_loss(student, teacher, labels, temperature=2.0, gamma=0.5))
