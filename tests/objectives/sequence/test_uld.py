"""Universal logit distillation: an optimal transport, and rank by rank."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, TopK
from limbeck.objectives.sequence import _pieces
from limbeck.objectives.sequence.uld import ULD, uld_loss


def logits(*size: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(q: Tensor, p: Tensor) -> float:
    ours, theirs = sorted(q.tolist(), reverse=True), sorted(p.tolist(), reverse=True)
    width = max(len(ours), len(theirs))
    return sum(abs(a - b) for a, b in zip(ours + [0.0] * (width - len(ours)), theirs + [0.0] * (width - len(theirs)), strict=True))


@pytest.mark.parametrize(("ours", "theirs"), [(6, 6), (4, 9), (9, 4)])
def test_it_is_the_sum_over_ranks(ours: int, theirs: int) -> None:
    z, other = logits(5, ours), logits(5, theirs, seed=1)
    for temperature in (1.0, 3.0):
        expected = [naive(a.div(temperature).softmax(0), b.div(temperature).softmax(0)) for a, b in zip(z, other, strict=True)]
        torch.testing.assert_close(uld_loss(z, other, temperature=temperature), torch.tensor(expected, dtype=torch.float64))


def test_sorting_is_the_cheapest_way_to_carry_one_set_of_masses_over_to_the_other() -> None:
    """Of all matchings of the entries of one side to those of the other, the sum of differences is least in order of size."""
    q, p = logits(5).softmax(0).numpy(), logits(5, seed=1).softmax(0).numpy()
    cost = np.abs(q[:, None] - p[None]).flatten()
    rows = np.array([[float(at // 5 == row) for at in range(25)] for row in range(5)] + [[float(at % 5 == row) for at in range(25)] for row in range(5)])
    best = linprog(cost, A_eq=rows, b_eq=np.ones(10)).fun
    assert np.isclose(best, float(uld_loss(torch.tensor(q).log()[None], torch.tensor(p).log()[None])))


def test_the_order_of_the_teacher_s_tokens_does_not_matter_and_no_more_than_two_is_lost() -> None:
    z, other = logits(4, 7), logits(4, 7, seed=1)
    torch.testing.assert_close(uld_loss(z, other[:, torch.randperm(7)]), uld_loss(z, other))
    assert float(uld_loss(torch.tensor([[50.0, 0.0]]), torch.zeros(1, 10_000))) == pytest.approx(2, abs=1e-3)


def knowledge(z: Tensor, mask: Tensor | None = None) -> Knowledge:
    return Knowledge({"main": Dense(z)}, mask=mask)


def test_the_nth_token_that_counts_meets_the_teacher_s_nth() -> None:
    z, other = logits(2, 5, 6), logits(2, 4, 8, seed=1)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()
    theirs = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    found = ULD()(knowledge(z, mask), knowledge(other, theirs), {})
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for row, pairs in enumerate(([(2, 1), (3, 2)], [(0, 0), (2, 1)])):
        for at, their in pairs:
            expected[row, at] = naive(z[row, at].softmax(0), other[row, their].softmax(0))
    torch.testing.assert_close(found, expected)
    whole = ULD()(knowledge(z), knowledge(other), {})
    assert not whole[:, 4:].any()
    for row in range(2):
        for at in range(4):
            assert float(whole[row, at]) == pytest.approx(naive(z[row, at].softmax(0), other[row, at].softmax(0)))


def test_states_and_a_head_give_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    states, weight, other = logits(2, 5, 3), logits(6, 3, seed=1), logits(2, 5, 8, seed=2)
    told = []
    for most in (1 << 24, 20):
        monkeypatch.setattr(_pieces, "_LOGITS", most)
        leaves = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
        student = Knowledge({"main": Hidden(leaves[0], leaves[1])}, mask=torch.tensor([[1, 1, 1, 0, 1]] * 2).bool())
        loss = ULD()(student, knowledge(other), {})
        told.append([loss, *torch.autograd.grad((loss**2).sum(), leaves)])
    for one, piece in zip(*told, strict=True):
        torch.testing.assert_close(one, piece)


def test_refusals() -> None:
    z = logits(2, 3, 4)
    with pytest.raises(RecipeError, match="temperature"):
        ULD(temperature=0.0)
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[3, 3\].*retokenized"):
        ULD().bind(knowledge(z), knowledge(logits(3, 3, 4)), None, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MismatchError, match=r"softmax.*student's answers are bernoulli"):
        ULD().bind(Knowledge({"main": Dense(z, "bernoulli")}), knowledge(z), None, None)  # pyright: ignore[reportArgumentType]
    few = Knowledge({"main": TopK(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.int64), torch.zeros(2, 3), 1.0, 4)})
    with pytest.raises(MismatchError, match="reads whole answers, and the teacher's is the 1 likeliest"):
        ULD().bind(knowledge(z), few, None, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MismatchError, match="whole answers are compared"):
        ULD()(knowledge(z), few, {})
