"""DFAD: the gap against a naive loop, who pulls which way, and the adaptive form."""

import math

import torch

from limbeck.core.lookup import build
from limbeck.schemes.dfad import l1_gap

from .test_synthetic import batch, scheme


def test_the_gap_is_the_mean_absolute_difference() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    naive = [sum(abs(a - b) for a, b in zip(*rows, strict=True)) / 3 for rows in zip(one.tolist(), other.tolist(), strict=True)]
    assert torch.allclose(l1_gap(one, other), torch.tensor(naive, dtype=torch.float64), rtol=1e-12)


def test_the_generator_is_paid_for_what_the_student_pays() -> None:
    images = torch.rand(6, 1, 8, 8)
    made = scheme("dfad", [0.0 * build("objectives", "response.kd", {})], game=2.0).eval()
    cost, parts = made.price(images)  # pyright: ignore[reportCallIssue]
    losses = made.lessons({"input": images})  # pyright: ignore[reportCallIssue]
    assert torch.isclose(losses.loss, -2 * cost) and parts["gap"] > 0
    adaptive = scheme("dfad", adaptive=True).eval().price(images)[0]  # pyright: ignore[reportCallIssue]
    assert math.isclose(float(adaptive), -math.log1p(float(parts["gap"])), rel_tol=1e-5)


def test_the_turns_are_the_papers() -> None:
    made = scheme("dfad", student_steps=5)
    assert made.phases == ("generator", *["student"] * 5)
    first, second = (made._images(4) for _ in range(2))  # pyright: ignore[reportCallIssue]
    assert not torch.equal(first, second), "each step of the student has images of its own"
    assert set(made.train()(batch(), "student").parts) == {"kd", "dfad"}
