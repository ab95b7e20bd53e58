"""How the losses of a divergence over a large vocabulary, and their gradient, are computed part by part; `_streaming` says what and when.

Shapes: R rows of N, B entries of V, k kept classes of a teacher.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.core.knowledge import Dense, Hidden, TopK

from ._divergences import Divergence

__all__ = ["Grads", "Job", "by_tokens", "by_vocabulary", "whole"]


@dataclass(frozen=True)
class Job:
    """What stays the same over all parts: the loss, and how many rows and entries of the vocabulary are taken at a time."""

    divergence: Divergence
    temperature: float
    hard: float
    toward: float | None
    classes: int
    by_vocabulary: bool
    rows: int
    columns: int


Grads = tuple[Tensor | None, ...]
"""Room in float32 for the gradients of states (or logits), weight and bias; None where none is asked for."""


def whole(logits: Tensor, teacher: Any, labels: Tensor | None, weights: Tensor | None, job: Job) -> Tensor:
    """Return the losses of all rows of logits `[N, V]` that are there anyway; rows may be weighed again afterwards, and the operator traced."""
    z = logits[:, : job.classes]
    with torch.no_grad():
        loss, pull = _whole_rows(z.detach().float(), _teachers(teacher, slice(None), job), labels, job, learns=True)
    assert pull is not None
    moved = torch.where(pull == 0, 0.0, z * pull).sum(-1)  # its gradient is the pull, and its value of no account
    loss = loss + (moved - moved.detach())
    return loss if weights is None else loss * weights


def by_tokens(student: Hidden, teacher: Any, labels: Tensor | None, weights: Tensor | None, job: Job, grads: Grads) -> Tensor:
    """Return the losses of all rows, some rows at a time, and add to `grads`."""
    learns, count = any(one is not None for one in grads), student.predictions[0]
    losses = torch.empty(count, dtype=torch.float32, device=student.states.device)
    for start in range(0, count, job.rows):
        at = slice(start, min(start + job.rows, count))
        z = _part(student, at, 0, job.classes)
        loss, pull = _whole_rows(z, _teachers(teacher, at, job), None if labels is None else labels[at], job, learns)
        losses[at] = loss if weights is None else loss * weights[at]
        if pull is not None:
            _go_back(student, pull if weights is None else pull.mul_(weights[at, None]), z, at, 0, grads)
    return losses


def _part(answer: Hidden | Dense, at: slice, start: int, end: int) -> Tensor:
    """Logits `[R, end - start]` of rows `at` and entries `start` to `end`, in float32."""
    if isinstance(answer, Dense):
        return answer.logits[at, start:end].detach().float()
    states, weight = answer.states[at].detach(), answer.weight.detach()
    if states.dtype == weight.dtype == torch.float32:
        z = states @ weight[start:end].t()
    elif states.is_cuda and states.dtype == weight.dtype:
        z = torch.mm(states, weight[start:end].t(), out_dtype=torch.float32)
    else:
        z = torch.empty(len(states), end - start, dtype=torch.float32, device=states.device)
        for first, last in _casts(weight, start, end):
            torch.mm(states.float(), weight[first:last].float().t(), out=z[:, first - start : last - start])
    if answer.scale != 1:
        z.mul_(answer.scale)
    if answer.bias is not None:
        z.add_(answer.bias[start:end].detach().float(), alpha=answer.scale)
    return z if answer.softcap is None else z.div_(answer.softcap).tanh_().mul_(answer.softcap)


def _teachers(teacher: Any, at: slice, job: Job) -> Tensor | TopK | None:
    if teacher is None:
        return None
    if isinstance(teacher, TopK):
        return TopK(teacher.log_probs[at], teacher.indices[at], teacher.log_tail[at], teacher.temperature, teacher.classes, teacher.link)
    with torch.no_grad():
        return _part(teacher, at, 0, job.classes)


def _whole_rows(z: Tensor, theirs: Tensor | TopK | None, labels: Tensor | None, job: Job, learns: bool) -> tuple[Tensor, Tensor | None]:
    """Loss `[R]` and gradient `[R, V]` to the logits `z [R, V]` of whole rows."""
    loss, pull = torch.zeros(len(z), dtype=z.dtype, device=z.device), None
    log_q = None
    if theirs is not None and job.hard < 1:
        log_q = torch.log_softmax(z / job.temperature if job.temperature != 1 else z, -1)
        loss, pull = _apart(z, log_q, theirs, job, learns)
        loss = loss * (1 - job.hard)
        pull = pull.mul_(1 - job.hard) if pull is not None else None
    if job.hard > 0:
        assert labels is not None
        log_q1 = log_q if log_q is not None and job.temperature == 1 else torch.log_softmax(z, -1)
        index = labels.unsqueeze(-1)
        loss = loss - job.hard * log_q1.gather(-1, index).squeeze(-1)
        if learns:
            hard = log_q1.exp_().mul_(job.hard)
            hard.scatter_add_(-1, index, hard.new_full(index.shape, -job.hard))
            pull = hard if pull is None else pull.add_(hard)
    return loss, pull


def _apart(z: Tensor, log_q: Tensor, theirs: Tensor | TopK, job: Job, learns: bool) -> tuple[Tensor, Tensor | None]:
    """T^2 D of each row and its gradient to z: T (s - q sum(s))."""
    t = job.temperature
    if isinstance(theirs, TopK):
        return _apart_from_few(log_q, theirs, job, learns)
    target = theirs if job.toward is None else torch.lerp(z, theirs, job.toward)
    log_p = torch.log_softmax(target / t if t != 1 else target, -1)
    loss = job.divergence.terms(log_p, log_q).sum(-1) * t**2
    if not learns:
        return loss, None
    pull = job.divergence.pull(log_p, log_q)
    return loss, pull.addcmul_(log_q.exp(), pull.sum(-1, keepdim=True), value=-1).mul_(t)


def _apart_from_few(log_q: Tensor, teacher: TopK, job: Job, learns: bool) -> tuple[Tensor, Tensor | None]:
    """The same for a teacher's likeliest classes: the others are one class of both sides, whose pull the student's others share by their probabilities."""
    t, q = job.temperature, log_q.exp()
    kept = log_q.gather(-1, teacher.indices)
    rest = q.scatter(-1, teacher.indices, 0.0)
    tail = rest.sum(-1, keepdim=True)
    ours = torch.cat([kept, tail.log()], -1)
    theirs = torch.cat([teacher.log_probs, teacher.log_tail.unsqueeze(-1)], -1).to(ours)
    loss = job.divergence.terms(theirs, ours).sum(-1) * t**2
    if not learns:
        return loss, None
    pull = job.divergence.pull(theirs, ours)
    shared = rest.mul_(torch.where(tail > 0, pull[..., -1:] / tail, 0.0))
    shared.scatter_(-1, teacher.indices, pull[..., :-1])
    return loss, shared.addcmul_(q, pull.sum(-1, keepdim=True), value=-1).mul_(t)


def _go_back(student: Hidden, pull: Tensor, z: Tensor, at: slice, start: int, grads: Grads) -> None:
    """Add what a gradient `pull [R, B]` to logits of rows `at` and entries from `start` on comes to for states, weight and bias."""
    if student.softcap is not None:
        pull.mul_(1 - (z / student.softcap).square_())
    if student.scale != 1:
        pull.mul_(student.scale)
    to_states, to_weight, to_bias = grads
    end = start + pull.shape[1]
    if to_states is not None:
        for first, last in _casts(student.weight, start, end):
            to_states[at].addmm_(pull[:, first - start : last - start], student.weight[first:last].detach().float())
    if to_weight is not None:
        to_weight[start:end].addmm_(pull.t(), student.states[at].detach().float())
    if to_bias is not None:
        to_bias[start:end].add_(pull.sum(0))


def _casts(weight: Tensor, start: int, end: int, block: int = 8192) -> Iterator[tuple[int, int]]:
    """Parts of a vocabulary small enough to be cast to float32 on the way; the whole where it is float32."""
    step = end - start if weight.dtype == torch.float32 else block
    for first in range(start, end, step):
        yield first, min(first + step, end)


def by_vocabulary(student: Hidden, teacher: Any, labels: Tensor | None, weights: Tensor | None, job: Job, grads: Grads) -> Tensor:
    """Return the losses of all rows and add to `grads`, in three passes over the vocabulary: normalisers, losses and summed pulls, gradients."""
    count, t = student.predictions[0], job.temperature
    whole = slice(0, count)
    blocks = [(start, min(start + job.columns, job.classes)) for start in range(0, job.classes, job.columns)]
    device = student.states.device

    def logits(start: int, end: int) -> tuple[Tensor, Tensor | None]:
        z = _part(student, whole, start, end)
        if teacher is None:
            return z, None
        theirs = _part(teacher, whole, start, end)
        return z, theirs if job.toward is None else torch.lerp(z, theirs, job.toward)

    lse = torch.full((3, count), float("-inf"), device=device)  # of the student at T, of the teacher at T, of the student at 1
    for block in blocks:
        z, theirs = logits(*block)
        lse[0] = torch.logaddexp(lse[0], (z / t).logsumexp(-1))
        lse[1] = lse[1] if theirs is None else torch.logaddexp(lse[1], (theirs / t).logsumexp(-1))
        lse[2] = lse[0] if t == 1 else torch.logaddexp(lse[2], z.logsumexp(-1)) if job.hard else lse[2]
    losses, summed = torch.zeros(count, device=device), torch.zeros(count, 1, device=device)
    for block in blocks:
        z, theirs = logits(*block)
        if theirs is not None and job.hard < 1:
            log_q, log_p = z / t - lse[0, :, None], theirs / t - lse[1, :, None]
            losses += job.divergence.terms(log_p, log_q).sum(-1) * (t**2 * (1 - job.hard))
            summed += job.divergence.pull(log_p, log_q).sum(-1, keepdim=True)
        if job.hard:
            assert labels is not None
            inside = (labels >= block[0]) & (labels < block[1])
            found = z.gather(-1, (labels - block[0]).clamp(0, z.shape[1] - 1).unsqueeze(-1)).squeeze(-1)
            losses -= torch.where(inside, (found - lse[2]) * job.hard, 0.0)
    for block in blocks if any(one is not None for one in grads) else ():
        z, theirs = logits(*block)
        pull = torch.zeros_like(z)
        if theirs is not None and job.hard < 1:
            log_q, log_p = z / t - lse[0, :, None], theirs / t - lse[1, :, None]
            pull = job.divergence.pull(log_p, log_q).addcmul_(log_q.exp(), summed, value=-1).mul_(t * (1 - job.hard))
        if job.hard:
            assert labels is not None
            pull += (z - lse[2, :, None]).exp_().mul_(job.hard)
            inside = ((labels >= block[0]) & (labels < block[1])).to(pull.dtype) * -job.hard
            pull.scatter_add_(-1, (labels - block[0]).clamp(0, z.shape[1] - 1).unsqueeze(-1), inside.unsqueeze(-1))
        if weights is not None:
            pull.mul_(weights[:, None])
        _go_back(student, pull, z, whole, block[0], grads)
    return losses if weights is None else losses * weights
