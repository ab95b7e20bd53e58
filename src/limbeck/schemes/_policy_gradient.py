"""The reverse KL over whole texts, by its policy gradient: what each token of a sampled text costs.

With q the student, p the teacher, y_t the tokens of a text drawn from p~ = alpha p + (1 - alpha) q, and r_t = log p(y_t | y_<t) - log q(y_t | y_<t), the
gradient of KL(q || p) is (Gu et al. 2024, arXiv:2306.08543, eq. 2 to 7)

    -E[ sum_t w_t ( grad sum_v q(v | y_<t) log(p / q)(v | y_<t)  +  R_{t+1} grad log q(y_t | y_<t) ) ],    w_t = q / p~ (y_t | y_<t)

with R_{t+1} the sum of r over the tokens after t, or their mean. The first term is the reverse KL of a single step, exact; the second what the choice of y_t
does to the steps after it. For alpha = 0 and sums it is unbiased; the w_t stand for products over t, of which they are one factor.

Shapes: N rows, T tokens, n tokens that count, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Response

__all__ = ["runs", "scored", "surrogate"]

_LOGITS = 1 << 24
"""Logits of each side that are held at once."""


def runs(counts: Tensor, segment: Tensor | None = None) -> Tensor:
    """Number the written stretches of rows: `counts [N, T]` to `[N, T]`, from 0, all tokens of one stretch alike; -1 where nothing counts.

    >>> runs(torch.tensor([[False, True, True, False, True]]))
    tensor([[-1,  0,  0, -1,  1]])
    """
    fresh = counts.clone()
    fresh[:, 1:] &= ~counts[:, :-1] if segment is None else ~counts[:, :-1] | (segment[:, 1:] != segment[:, :-1])
    return torch.where(counts, fresh.flatten().cumsum(0).view_as(counts) - 1, -1)


def surrogate(log_q: Tensor, log_p: Tensor, kl: Tensor, run: Tensor, *, alpha: float = 0.0, normalize: bool = True, single_step: bool = True) -> Tensor:
    """Return a number for each token `[N, T]` whose gradient, summed, is the estimate; 0 where `run` is -1.

    `log_q`, with a gradient, and `log_p` `[N, T]`: of the tokens that were drawn; `kl`: the reverse KL of each step, with a gradient; `run`: whose text it is.
    `normalize` takes the mean of what comes after a token in the place of the sum. Without `single_step` it is the plain estimate, -sum_t R_t grad log q(y_t).
    """
    counts = run >= 0
    number = run.clamp(min=0).flatten()
    reward = torch.where(counts, (log_p - log_q).detach().double(), 0.0)
    if not bool(counts.any()):
        return torch.where(counts, log_q, 0.0)
    totals = torch.zeros(int(run.max()) + 1, dtype=torch.float64, device=run.device)
    within = _upto(reward, run)
    places = _upto(counts.double(), run)
    sums = totals.index_add(0, number, reward.flatten())[number].view_as(run)
    lengths = totals.index_add(0, number, counts.double().flatten())[number].view_as(run)
    after, left = sums - within, lengths - places
    if not single_step:
        after, left = after + reward, left + 1
    if normalize:
        after = after / left.clamp(min=1)
    weight = 1 / (alpha * reward.exp() + (1 - alpha))  # q / (alpha p + (1 - alpha) q)
    long = -(weight * after).to(log_q.dtype) * log_q
    each = long + weight.to(kl.dtype) * kl if single_step else long
    return torch.where(counts, each, 0.0)


def _upto(value: Tensor, run: Tensor) -> Tensor:
    """The sum of each run up to a token, with it; values are 0 outside of runs."""
    whole = value.flatten().cumsum(0).view_as(value)
    before = whole - value
    first = (run >= 0) & torch.cat([torch.ones_like(run[:, :1], dtype=torch.bool), run[:, 1:] != run[:, :-1]], 1)
    base = torch.zeros(int(run.max()) + 1, dtype=value.dtype, device=value.device)
    base[run[first]] = before[first]
    return whole - base[run.clamp(min=0)]


def scored(student: Response, teacher: Response, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log q and log p of labels `[n]`, and KL(q || p) of each step, `[n]` float32, of answers of `[n]` predictions; the head's logits in pieces.

    Raises:
        MismatchError: an answer of which some classes alone are known.
    """
    for side in (student, teacher):
        if not isinstance(side, (Dense, Hidden)):
            raise MismatchError(f"the reverse KL is a sum over all classes, and an answer is {side}: take a teacher that gives whole answers, {{kind: frozen}}")
    assert isinstance(student, (Dense, Hidden)) and isinstance(teacher, (Dense, Hidden))
    ours, theirs = _rows(student), _rows(teacher)
    size = max(1, _LOGITS // max(student.classes, teacher.classes))

    def piece(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_q = _logits(student, a)[:, :classes].float().log_softmax(-1)
        log_p = _logits(teacher, b).detach()[:, :classes].float().log_softmax(-1)
        gap = torch.where(log_q == -torch.inf, 0.0, log_q - log_p)
        return log_q.gather(1, y[:, None])[:, 0], log_p.gather(1, y[:, None])[:, 0], (log_q.exp() * gap).sum(-1)

    if len(labels) <= size:
        return piece(ours, theirs, labels)
    again: Callable[..., tuple[Tensor, Tensor, Tensor]] = piece
    parts = [
        checkpoint(again, a, b, y, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else piece(a, b, y)
        for a, b, y in zip(ours.split(size), theirs.split(size), labels.split(size), strict=True)
    ]
    log_q, log_p, kl = (torch.cat(each) for each in zip(*parts, strict=True))
    return log_q, log_p, kl


def _rows(side: Dense | Hidden) -> Tensor:
    return side.states if isinstance(side, Hidden) else side.logits


def _logits(side: Dense | Hidden, rows: Tensor) -> Tensor:
    return replace(side, states=rows).logits if isinstance(side, Hidden) else rows
