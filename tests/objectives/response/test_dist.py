"""`response.dist` against a loop in float64, what leaves a correlation as it is, and what has none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.objectives.response.dist import DIST, dist_loss


def pearson(x: list[float], y: list[float], eps: float) -> float:
    x, y = ([value - math.fsum(side) / len(side) for value in side] for side in (x, y))
    norms = math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / (norms + eps)


def naive(student: list[list[float]], teacher: list[list[float]], beta: float, gamma: float, temperature: float, eps: float = 0.0) -> float:
    def softmax(row: list[float]) -> list[float]:
        odds = [math.exp((logit - max(row)) / temperature) for logit in row]
        return [odd / sum(odds) for odd in odds]

    q, p = [softmax(row) for row in student], [softmax(row) for row in teacher]
    inter = [1 - pearson(a, b, eps) for a, b in zip(q, p, strict=True)]
    columns = zip(zip(*q, strict=True), zip(*p, strict=True), strict=True)
    intra = [1 - pearson(list(a), list(b), eps) for a, b in columns]
    return temperature**2 * (beta * math.fsum(inter) / len(inter) + gamma * math.fsum(intra) / len(intra))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.floats(0.5, 8), st.floats(0, 3), st.floats(0, 3), st.sampled_from([0.0, 1e-8, 0.1]), st.integers(0, 10**6))
def test_the_value_equals_a_loop(n: int, classes: int, temperature: float, beta: float, gamma: float, eps: float, seed: int) -> None:
    student, teacher = torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    found = dist_loss(student, teacher, beta=beta, gamma=gamma, temperature=temperature, eps=eps)
    assert found.item() == pytest.approx(naive(student.tolist(), teacher.tolist(), beta, gamma, temperature, eps), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_the_gradient_is_that_of_the_loop(eps: float) -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64).unbind()
    (gradient,) = torch.autograd.grad(dist_loss(student.requires_grad_(), teacher, beta=2.0, gamma=3.0, temperature=2.0, eps=eps), student)
    for row in range(4):
        for c in range(5):
            up, down = student.detach().clone(), student.detach().clone()
            up[row, c] += 1e-6
            down[row, c] -= 1e-6
            slope = (naive(up.tolist(), teacher.tolist(), 2.0, 3.0, 2.0, eps) - naive(down.tolist(), teacher.tolist(), 2.0, 3.0, 2.0, eps)) / 2e-6
            assert gradient[row, c].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_rare_classes_count_as_much_as_others_without_eps_and_nothing_with_it() -> None:
    student, teacher = torch.randn(2, 8, 4).unbind()
    rare = torch.tensor([0.0, 0.0, 0.0, -30.0])  # about e^-30 of every example's probability
    whole, faded = (dist_loss(student + rare, teacher + rare, beta=0.0, eps=eps) for eps in (0.0, 1e-8))
    exact = naive((student + rare).double().tolist(), (teacher + rare).double().tolist(), 0.0, 1.0, 1.0)
    assert whole.item() == pytest.approx(exact, rel=1e-4)
    assert abs(faded.item() - whole.item()) > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([0.0, 1e-8]),
)
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int, eps: float) -> None:
    student, teacher = (scale * torch.randn(2, n, classes)).to(dtype).unbind()
    loss = dist_loss(student.requires_grad_(), teacher, eps=eps)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert loss >= 0


def test_one_example_has_no_relation_to_others_and_one_class_none_at_all() -> None:
    student, teacher = torch.randn(2, 1, 5).unbind()
    loss = dist_loss(student.requires_grad_(), teacher, beta=0.0)
    assert loss == 0
    assert not torch.autograd.grad(loss, student)[0].any()
    assert dist_loss(torch.randn(4, 1), torch.randn(4, 1)) == 0


def test_who_answers_all_alike_is_uncorrelated_but_not_pushed_anywhere() -> None:
    flat = torch.zeros(3, 4, requires_grad=True)
    loss = dist_loss(flat, torch.randn(3, 4))
    assert loss == 2
    assert not torch.autograd.grad(loss, flat)[0].any()
    assert dist_loss(flat, torch.ones(3, 4)) == 0


def test_nan_is_not_hidden() -> None:
    assert dist_loss(torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), torch.randn(2, 2)).isnan()


def test_masked_predictions_are_left_out() -> None:
    student, teacher = torch.randn(2, 2, 3, 4).unbind()
    mask = torch.tensor([[True, False, True], [True, True, False]])

    def ask(mask: Tensor | None) -> Tensor:
        said = student.clone() if mask is None else student.masked_fill(~mask[..., None], float("nan"))
        return DIST(temperature=2.0)(Knowledge({"main": Dense(said)}, mask=mask), Knowledge({"main": Dense(teacher)}), {})

    assert torch.allclose(ask(mask), dist_loss(student[mask], teacher[mask], temperature=2.0))
    assert torch.allclose(ask(None), dist_loss(student.reshape(6, 4), teacher.reshape(6, 4), temperature=2.0))
    assert ask(torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="gamma is -1"):
        DIST(gamma=-1.0)
    with pytest.raises(RecipeError, match="eps is nan"):
        DIST(eps=float("nan"))
    with pytest.raises(MismatchError, match=r"\[3, 4\].*\[1, 4\]"):
        dist_loss(torch.zeros(3, 4), torch.zeros(1, 4))
