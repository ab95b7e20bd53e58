"""The estimate of the gradient of KL(q || p) over texts, against the gradient itself: every text there is is counted."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, TopK
from limbeck.schemes import _policy_gradient
from limbeck.schemes._policy_gradient import runs, scored, surrogate

V, T, END = 3, 3, 2


def prefixes(end: int | None) -> list[tuple[int, ...]]:
    return [one for long in range(T) for one in itertools.product(range(V), repeat=long) if end not in one]


def texts(end: int | None) -> list[tuple[int, ...]]:
    every = [one for long in range(1, T + 1) for one in itertools.product(range(V), repeat=long)]
    return [one for one in every if end not in one[:-1] and (one[-1] == end or len(one) == T)]


def trees(end: int | None, seed: int = 0) -> tuple[Tensor, Tensor, dict[tuple[int, ...], int]]:
    """Logits of the student, to be differentiated, and of the teacher after each prefix, `[prefixes, V]`."""
    place = {one: at for at, one in enumerate(prefixes(end))}
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(len(place), V, generator=draw, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, place


def logs(logits: Tensor, place: dict[tuple[int, ...], int], text: tuple[int, ...]) -> Tensor:
    return torch.stack([logits[place[text[:at]]].log_softmax(0)[one] for at, one in enumerate(text)])


def exact(end: int | None) -> Tensor:
    student, teacher, place = trees(end)
    loss = sum((q := logs(student, place, one).sum()).exp() * (q - logs(teacher, place, one).sum()) for one in texts(end))
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, student)[0]


def estimates(end: int | None, *, alpha: float = 0.0, **how: bool) -> tuple[Tensor, Tensor]:
    """The estimate by each text, and the probability with which that text is written."""
    found, chances = [], []
    for text in texts(end):
        student, teacher, place = trees(end)
        at = [place[text[:one]] for one in range(len(text))]
        log_q, log_p, kl = scored(Dense(student[at]), Dense(teacher[at]), torch.tensor(text), V)
        run = torch.zeros(1, len(text), dtype=torch.int64)
        loss = surrogate(log_q[None], log_p[None], kl[None], run, alpha=alpha, **how).sum()
        found.append(torch.autograd.grad(loss, student)[0])
        q, p = logs(student, place, text).detach().exp(), logs(teacher, place, text).exp()
        chances.append((alpha * p + (1 - alpha) * q).prod())
    return torch.stack(found), torch.stack(chances)


@pytest.fixture(autouse=True)
def in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored in float32 is scored in float64 here."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("single_step", [True, False])
@pytest.mark.parametrize("end", [None, END])
def test_its_expectation_is_the_gradient_of_the_reverse_kl_over_texts(end: int | None, single_step: bool) -> None:
    gradient = exact(end)
    found, chances = estimates(end, normalize=False, single_step=single_step)
    assert math.isclose(float(chances.sum()), 1)
    torch.testing.assert_close((chances[:, None, None] * found).sum(0), gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("end", [None, END])
def test_exact_single_steps_lower_its_variance(end: int | None) -> None:
    gradient = exact(end)
    spread = []
    for single_step in (True, False):
        found, chances = estimates(end, normalize=False, single_step=single_step)
        spread.append(float((chances * ((found - gradient) ** 2).sum((1, 2))).sum()))
    assert spread[0] < 0.9 * spread[1]


def test_of_one_token_the_weights_make_it_unbiased_whoever_writes() -> None:
    """Texts of one token: the one factor that is kept is the whole product."""
    student, teacher, place = trees(None)
    gradient = torch.autograd.grad((student[0].softmax(0) * (student[0].log_softmax(0) - teacher[0].log_softmax(0))).sum(), student)[0]
    for alpha in (0.0, 0.3, 0.9):
        for single_step in (True, False):
            total = torch.zeros_like(gradient)
            for token in range(V):
                student, teacher, place = trees(None)
                at = [place[()]]
                log_q, log_p, kl = scored(Dense(student[at]), Dense(teacher[at]), torch.tensor([token]), V)
                loss = surrogate(log_q[None], log_p[None], kl[None], torch.zeros(1, 1, dtype=torch.int64), alpha=alpha, single_step=single_step).sum()
                total += (alpha * log_p.exp() + (1 - alpha) * log_q.exp()).detach() * torch.autograd.grad(loss, student)[0]
            torch.testing.assert_close(total, gradient, rtol=1e-9, atol=1e-11)


def naive(log_q: Tensor, log_p: Tensor, kl: Tensor, alpha: float, normalize: bool) -> Tensor:
    """The paper's formula for one text, token by token."""
    loss = torch.zeros((), dtype=torch.float64)
    reward = (log_p - log_q).detach()
    for t in range(len(log_q)):
        q, p = log_q[t].detach().exp(), log_p[t].exp()
        after = sum(float(one) for one in reward[t + 1 :])
        if normalize and len(log_q) > t + 1:
            after /= len(log_q) - t - 1
        loss = loss + q / (alpha * p + (1 - alpha) * q) * (kl[t] - after * log_q[t])
    return loss


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_texts_in_one_row_know_nothing_of_each_other(alpha: float, normalize: bool) -> None:
    counts = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0], [0] * 8, [0, 0, 0, 0, 0, 0, 0, 1]]).bool()
    segment = torch.tensor([[1, 1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 2, 2, 2], [1] * 8, [1] * 8])
    run = runs(counts, segment)
    assert run.tolist() == [[-1, 0, 0, 0, -1, 1, 2, 2], [3, 3] + [-1] * 6, [-1] * 8, [-1] * 7 + [4]]
    draw = torch.Generator().manual_seed(1)
    log_q, log_p, kl = (torch.randn(4, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    leaves = [log_q.clone().requires_grad_(), kl.clone().requires_grad_()]
    each = surrogate(leaves[0], log_p, leaves[1], run, alpha=alpha, normalize=normalize)
    assert not each[~counts].any()
    found = torch.autograd.grad(each.sum(), leaves)
    plain = [log_q.clone().requires_grad_(), kl.clone().requires_grad_()]
    expected = sum(naive(plain[0][run == one], log_p[run == one], plain[1][run == one], alpha, normalize) for one in range(5))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(each.sum(), expected)
    for one, other in zip(found, torch.autograd.grad(expected, plain), strict=True):
        torch.testing.assert_close(one, other)


def test_where_nothing_is_written_nothing_is_learnt() -> None:
    log_q = torch.zeros(2, 3, requires_grad=True)
    each = surrogate(log_q, torch.zeros(2, 3), torch.zeros(2, 3), torch.full((2, 3), -1))
    each.sum().backward()
    assert not each.any() and log_q.grad is not None and not log_q.grad.any()


def test_a_head_is_multiplied_out_in_pieces_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    states, weight, theirs = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((7, 4), (9, 4), (7, 11)))
    labels = torch.randint(0, 9, (7,), generator=draw)
    told = []
    for most in (1 << 24, 22):
        monkeypatch.setattr(_policy_gradient, "_LOGITS", most)
        leaves = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
        found = scored(Hidden(leaves[0], leaves[1]), Dense(theirs), labels, 9)
        told.append([*found, *torch.autograd.grad(found[0].sum() + (found[2] ** 2).sum(), leaves)])
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other)
    q, p = (states @ weight.T).log_softmax(-1), theirs[:, :9].log_softmax(-1)
    torch.testing.assert_close(told[0][2], (q.exp() * (q - p)).sum(-1))
    few = TopK(torch.zeros(7, 1), torch.zeros(7, 1, dtype=torch.int64), torch.zeros(7), 1.0, 9)
    with pytest.raises(MismatchError, match="a sum over all classes"):
        scored(Hidden(states, weight), few, labels, 9)
