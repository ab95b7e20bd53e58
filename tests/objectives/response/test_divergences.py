"""Each divergence against a loop over classes, its pull against autograd, and what the papers say of it."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from limbeck.objectives.response._divergences import JSD, Divergence, ForwardKL, ReverseKL, SkewKL, SkewReverseKL, TotalVariation, named

INF = float("inf")
EVERY: list[Divergence] = [ForwardKL(), ReverseKL(), JSD(), JSD(beta=0.1), JSD(beta=0.9), SkewKL(), SkewKL(alpha=0.7), SkewReverseKL(), TotalVariation()]
every = pytest.mark.parametrize("divergence", EVERY, ids=str)


def kl(p: list[float], q: list[float]) -> float:
    return sum(0.0 if a == 0 else INF if b == 0 else a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixed(p: list[float], q: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def naive(divergence: Divergence, p: list[float], q: list[float]) -> float:
    """The value, class by class."""
    if isinstance(divergence, ForwardKL):
        return kl(p, q)
    if isinstance(divergence, ReverseKL):
        return kl(q, p)
    if isinstance(divergence, JSD):
        m = mixed(p, q, divergence.beta)
        return divergence.beta * kl(p, m) + (1 - divergence.beta) * kl(q, m)
    if isinstance(divergence, SkewKL):
        return kl(p, mixed(p, q, divergence.alpha))
    if isinstance(divergence, SkewReverseKL):
        return kl(q, mixed(q, p, divergence.alpha))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def parts(divergence: Divergence, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The value of each row of student's logits z and teacher's y, and its gradient to z, by terms and pulls."""
    log_q, log_p = z.log_softmax(-1), y.log_softmax(-1)
    q = log_q.exp()
    terms, pull = divergence.parts(log_p.exp(), q, log_p, log_q)
    value = terms.sum(-1)  # terms and pulls may be one tensor
    return value, pull - q * pull.sum(-1, keepdim=True)


def numeric(value: Callable[[Tensor], Tensor], z: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a row's value by central differences."""
    found = torch.zeros_like(z)
    for c in range(z.shape[-1]):
        up, down = z.clone(), z.clone()
        up[:, c] += step
        down[:, c] -= step
        found[:, c] = (value(up) - value(down)) / (2 * step)
    return found


@every
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.floats(0.1, 12), st.integers(0, 10**6))
def test_value_is_a_loops_and_the_pull_its_derivative(divergence: Divergence, classes: int, spread: float, seed: int) -> None:
    z, y = (spread * torch.randn(2, 3, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).unbind()
    value, gradient = parts(divergence, z, y)
    for row in range(3):
        assert value[row].item() == pytest.approx(naive(divergence, y[row].softmax(-1).tolist(), z[row].softmax(-1).tolist()), rel=1e-9, abs=1e-14)
    torch.testing.assert_close(gradient, numeric(lambda at: parts(divergence, at, y)[0], z), rtol=1e-4, atol=1e-8)


@every
def test_the_pulls_sum_to_what_is_said(divergence: Divergence) -> None:
    log_q, log_p = torch.randn(2, 5, 7, dtype=torch.float64).log_softmax(-1).unbind()
    _, pull = divergence.parts(log_p.exp(), log_q.exp(), log_p, log_q)
    alike = pull.sum(-1).std() < 1e-12
    assert alike == (divergence.total is not None)
    if divergence.total is not None:
        torch.testing.assert_close(pull.sum(-1), torch.full((5,), divergence.total, dtype=torch.float64))


@every
def test_the_same_choice_twice_costs_nothing_and_pulls_nothing(divergence: Divergence) -> None:
    z = torch.randn(4, 30, dtype=torch.float64).mul(5)
    value, gradient = parts(divergence, z, z.clone())
    assert value.abs().max() < 1e-14 and gradient.abs().max() < 1e-15


@every
def test_what_both_hold_impossible_is_as_if_it_were_not_there(divergence: Divergence) -> None:
    z, y = torch.randn(2, 3, 6, dtype=torch.float64).unbind()
    wide = [torch.cat([side, torch.full((3, 2), -INF, dtype=torch.float64)], -1) for side in (z, y)]
    value, gradient = parts(divergence, *wide)
    expected = parts(divergence, z, y)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient[:, :6], expected[1])
    assert (gradient[:, 6:] == 0).all()


@every
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_one_side_alone_holds_impossible_costs_what_the_formula_says(divergence: Divergence, side: str) -> None:
    z, y = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    (z if side == "student" else y)[:, 1] = -INF
    value, _ = parts(divergence, z, y)
    for row in range(3):
        assert value[row].item() == pytest.approx(naive(divergence, y[row].softmax(-1).tolist(), z[row].softmax(-1).tolist()))
    assert value.isinf().all() == isinstance(divergence, ForwardKL if side == "student" else ReverseKL)


@every
def test_probabilities_that_vanish_in_float32_cost_nothing(divergence: Divergence) -> None:
    z, y = torch.tensor([[0.0, -200.0, -300.0]]), torch.tensor([[0.0, -300.0, -INF]])
    value, gradient = parts(divergence, z, y)
    assert value.item() == 0 and (gradient == 0).all()


def test_the_bounds_and_limits_of_the_papers() -> None:
    z, y = torch.randn(2, 50, 8, dtype=torch.float64).mul(6).unbind()
    forward, reverse = parts(ForwardKL(), z, y)[0], parts(ReverseKL(), z, y)[0]
    torch.testing.assert_close(parts(ForwardKL(), y, z)[0], reverse)  # each is the other with the sides changed
    torch.testing.assert_close(parts(JSD(beta=0.3), z, y)[0], parts(JSD(beta=0.7), y, z)[0])
    assert parts(JSD(), z, y)[0].max() < math.log(2)
    assert parts(SkewKL(alpha=0.1), z, y)[0].max() < -math.log(0.1) and parts(SkewReverseKL(alpha=0.1), z, y)[0].max() < -math.log(0.1)
    variation = parts(TotalVariation(), z, y)[0]
    assert variation.max() < 1 and (variation <= (forward / 2).sqrt()).all()  # Pinsker
    near = (z[:5] + 0.3 * y[:5]).clone(), z[:5]  # Agarwal et al. 2024: JSD(beta) / beta tends to the forward KL, and by 1 - beta to the reverse
    for beta, limit, share in ((1e-6, ForwardKL(), 1e-6), (1 - 1e-6, ReverseKL(), 1e-6)):
        torch.testing.assert_close(parts(JSD(beta=beta), *near)[0] / share, parts(limit, *near)[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(parts(SkewKL(alpha=1e-9), *near)[0], parts(ForwardKL(), *near)[0], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(parts(SkewReverseKL(alpha=1e-9), *near)[0], parts(ReverseKL(), *near)[0], rtol=1e-5, atol=1e-9)


def test_near_each_other_all_are_one_quadratic_form() -> None:
    z, y = torch.randn(2, 20, 6, dtype=torch.float64).unbind()
    near = z + 1e-3 * y
    chi = parts(ForwardKL(), near, z)[0]  # half the Fisher form, times f''(1) of the divergence
    for divergence, curvature in ((ReverseKL(), 1), (JSD(beta=0.3), 0.3 * 0.7), (SkewKL(alpha=0.2), 0.8**2), (SkewReverseKL(alpha=0.2), 0.8**2)):
        torch.testing.assert_close(parts(divergence, near, z)[0], chi * curvature, rtol=1e-2, atol=0)


def test_names_and_options() -> None:
    assert named("jsd") == JSD(beta=0.5) and named({"kind": "skew_kl", "alpha": 0.3}) == SkewKL(alpha=0.3)
    assert named(TotalVariation()) == TotalVariation()
    for wrong in ("kl", {"kind": "jsd", "beta": 0.0}, {"kind": "jsd", "beta": 1.0}, {"kind": "skew_kl", "beta": 0.5}, {"kind": "jsd", "beta": float("nan")}):
        with pytest.raises(ValidationError):
            named(wrong)
