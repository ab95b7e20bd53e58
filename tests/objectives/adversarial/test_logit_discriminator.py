"""`adversarial.logit_discriminator`: what each side pays, who learns from it, and where the game leads."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.adversarial.logit_discriminator import LogitDiscriminator

NO_TASK = cast(Task, None)


def says(logits: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(logits)})


def bound(student: Tensor, teacher: Tensor, **options: Any) -> LogitDiscriminator:
    contest = LogitDiscriminator(**options)
    contest.bind(says(student), says(teacher), NO_TASK, None)
    return contest


def test_each_side_pays_what_the_papers_say() -> None:
    z, v = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    plain, critic = bound(z, v), bound(z, v, loss="wgan_gp")
    score = plain.discriminators[0]
    ones = torch.ones(5, dtype=torch.float64)
    expected = F.binary_cross_entropy(score(v).sigmoid(), ones) + F.binary_cross_entropy(score(z).sigmoid(), 0 * ones)
    torch.testing.assert_close(plain.oppose(says(z), says(v), {}).mean(), expected)
    torch.testing.assert_close(plain(says(z), says(v), {}).mean(), F.binary_cross_entropy(score(z).sigmoid(), ones))
    torch.manual_seed(3)
    told = critic.oppose(says(z), says(v), {})
    torch.manual_seed(3)
    mix = torch.rand(5, 1, dtype=torch.float64)
    x = (mix * v + (1 - mix) * z).detach().requires_grad_()
    score = critic.discriminators[0]
    (slope,) = torch.autograd.grad(score(x).sum(), x)
    torch.testing.assert_close(told, score(z) - score(v) + 10 * (slope.norm(dim=1) - 1) ** 2)
    assert told.dtype == torch.float64
    assert (plain.rounds, critic.rounds, bound(z, v, loss="wgan_gp", rounds=2).rounds) == (1, 5, 2)


@pytest.mark.parametrize("loss", ["plain", "wgan_gp"])
def test_the_opponent_sends_nothing_to_either_model(loss: str) -> None:
    z, v = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    contest = bound(z, v, loss=loss)
    contest.oppose(says(z), says(v), {}).sum().backward()
    assert z.grad is None and v.grad is None
    assert all(weight.grad is not None and weight.grad.any() for weight in list(contest.opponent.parameters())[:-1])
    contest(says(z), says(v), {}).sum().backward()
    assert z.grad is not None and z.grad.any() and v.grad is None


@pytest.mark.parametrize("loss", ["plain", "wgan_gp"])
def test_the_discriminator_learns_to_tell_them_apart_and_the_student_to_be_like_the_teacher(loss: Any) -> None:
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    with torch.no_grad():
        student.bias += torch.tensor([3.0, -3.0, 2.0])
    x = torch.randn(64, 4)
    v = teacher(x).detach()
    contest = bound(student(x).detach(), v, loss=loss, hidden=32)
    against = torch.optim.Adam(contest.opponent.parameters(), lr=3e-3, betas=(0.5, 0.9))
    learning = torch.optim.Adam(student.parameters(), lr=2e-2, betas=(0.5, 0.9))

    def oppose() -> None:
        against.zero_grad()
        contest.oppose(says(student(x)), says(v), {}).mean().backward()
        against.step()

    for _ in range(60):
        oppose()
    score = contest.discriminators[0]
    assert (score(v).mean() - score(student(x)).mean()).item() > 1
    before = (student(x) - v).mean(0).norm().item()
    for _ in range(150):
        for _ in range(contest.rounds):
            oppose()
        learning.zero_grad()
        contest(says(student(x)), says(v), {}).mean().backward()
        learning.step()
    assert (student(x) - v).mean(0).norm().item() < 0.2 * before


def test_it_says_how_often_it_is_right() -> None:
    z, v = torch.randn(6, 3), torch.randn(6, 3)
    contest = bound(z, v)
    score = contest.discriminators[0]
    expected = ((score(z) < 0).float() + (score(v) > 0).float()) / 2
    assert torch.equal(contest.told_apart(says(z), says(v)), expected) and contest.told_apart(says(z), says(v)).shape == (6,)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="no loss 'wgan' for LogitDiscriminator; did you mean 'wgan_gp'"):
        LogitDiscriminator(loss=cast(Any, "wgan"))
    with pytest.raises(RecipeError, match="rounds of LogitDiscriminator is 0; it must be 1 or more"):
        LogitDiscriminator(rounds=0)
    with pytest.raises(RecipeError, match="hidden of LogitDiscriminator is 0"):
        LogitDiscriminator(hidden=0)
    contest = bound(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(MismatchError, match="was bound to 3 classes, not to 4: make a new one"):
        contest.bind(says(torch.zeros(2, 4)), says(torch.zeros(2, 4)), NO_TASK, None)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)) | st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    loss=st.sampled_from(["plain", "wgan_gp"]),
)
def test_any_shape_scale_and_precision_is_finite(shape: tuple[int, ...], scale: float, dtype: torch.dtype, loss: Any) -> None:
    z, v = (scale * torch.randn(2, *shape)).to(dtype).unbind()
    z.requires_grad_()
    contest = bound(z, v, loss=loss, hidden=4)
    for told in (contest(says(z), says(v), {}), contest.oppose(says(z), says(v), {})):
        assert told.shape == shape[:-1] and told.isfinite().all() and told.dtype == torch.promote_types(dtype, torch.float32)
        told.sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in contest.parameters())
