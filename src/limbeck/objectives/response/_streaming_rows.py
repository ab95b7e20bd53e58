"""Rows of logits, part of the vocabulary after part: what is known of each row so far, its loss, and the gradient in the logits' place.

Each row is looked at part by part (`look`); then its log-sum-exps are known, and each part is met again for terms and pulls (`apart`). Where a row is whole
one part, which is the usual way, both happen while it is in the processor's cache.

Shapes: R rows, r of them at hand, V vocabulary, w entries of it at hand, from `start` on; k kept classes of a teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.knowledge import TopK

from ._divergences import Divergence

__all__ = ["Job", "Rows"]

Seen = tuple[Tensor | None, Tensor | None]
"""Probabilities of student and target, where these are of whole rows."""
_NEVER = float("-inf")
_LITTLE = 1e-30
"""Probability of all others together above which it is the sum of theirs; below, they are too small for numbers of 32 bits."""


@dataclass(frozen=True)
class Job:
    """What stays the same over all parts: the loss, the student's soft cap, whether a gradient is wanted, and how much is taken at a time.

    `rows` and `columns` of logits at a time are multiplied out, of which at most `tile` are at hand at once, in numbers of type `dtype`.
    """

    divergence: Divergence
    temperature: float
    hard: float
    toward: float | None
    classes: int
    rows: int
    columns: int
    tile: int
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    learns: bool = True

    @property
    def soft(self) -> float:
        """What multiplies the divergence."""
        return self.temperature**2 * (1 - self.hard)

    @property
    def factor(self) -> float:
        """What multiplies its gradient to the logits, one T being theirs."""
        return self.temperature * (1 - self.hard)


class Rows:
    """R rows: what the teacher keeps of them if that is all there is, their labels and weights, and what is known of them so far."""

    def __init__(self, count: int, device: torch.device, few: TopK | None, labels: Tensor | None, weights: Tensor | None, job: Job) -> None:
        exact = job.dtype if device.type == "mps" else torch.float64  # of numbers that hold for a row, and are few

        def each(value: float) -> Tensor:
            return torch.full((count,), value, dtype=exact, device=device)

        self.job, self.few, self.labels, self.weights = job, few, labels, weights
        self.ours, self.theirs = each(_NEVER), each(_NEVER)  # log-sum-exps at T, of student and target
        self.first = self.ours if job.temperature == 1 else each(_NEVER)  # of the student at 1
        self.found = each(0.0)  # the labels' logits
        self.losses = each(0.0)
        self.totals = each(job.divergence.total or 0.0)  # of the pulls
        if few is not None:
            self.rest = each(_NEVER)  # the log-sum-exp at T of what the teacher does not keep
            self.kept = torch.zeros_like(few.log_probs, dtype=job.dtype)  # logits / T; then what they are pulled by
            self.share = each(0.0)  # what the others are pulled by, all together
            self.mass = None if device.type != "cpu" or torch.compiler.is_compiling() else each(0.0)  # the others' probability, where it was summed up

    @property
    def weighed(self) -> Tensor:
        """The losses, each times its row's weight."""
        losses = self.losses.to(self.job.dtype)
        return losses if self.weights is None else losses * self.weights

    def look(self, z: Tensor, y: Tensor | None, at: slice, start: int) -> "Seen":
        """Add entries `start` on of rows `at` to what is known: the student's logits `z [r, w]`, the teacher's `y` where it has them.

        What is seen of whole rows is returned, for `apart`.
        """
        job = self.job
        scaled, whole = _over(z, job.temperature), z.shape[1] == job.classes
        q, ours = _normalised(scaled, whole, self.ours.dtype)
        self.ours[at] = torch.logaddexp(self.ours[at], ours)
        p = None
        if y is not None:
            p, theirs = _normalised(_over(self._target(z, y), job.temperature), whole, self.ours.dtype)
            self.theirs[at] = torch.logaddexp(self.theirs[at], theirs)
        if self.few is not None:
            if whole:
                index = self.few.indices[at]
                self.kept[at] = scaled.gather(-1, index)
            else:
                index, inside = _within(self.few.indices[at], start, z.shape[1])
                self.kept[at] += torch.where(inside, scaled.gather(-1, index.clamp_max(z.shape[1] - 1)), 0.0)
            if not self._summed_up(q, index, at):
                wide = torch.cat([scaled, scaled[:, :1]], -1).scatter_(-1, index, _NEVER)
                self.rest[at] = torch.logaddexp(self.rest[at], wide[:, :-1].logsumexp(-1))
        if job.hard > 0:
            assert self.labels is not None
            if job.temperature != 1:
                self.first[at] = torch.logaddexp(self.first[at], z.logsumexp(-1))
            index, inside = _within(self.labels[at, None], start, z.shape[1])
            self.found[at] += torch.where(inside, z.gather(-1, index.clamp_max(z.shape[1] - 1)), 0.0).squeeze(-1)
        return q, p

    def looked(self, at: slice) -> None:
        """Say that rows `at` were looked at whole: what is known of them by that alone is settled."""
        job = self.job
        if job.hard > 0:
            self.losses[at] += job.hard * (self.first[at] - self.found[at])
        if self.few is None:
            self.losses[at] += 0 * self.ours[at]  # what is no number stays that
            return
        log_q = torch.cat([_less(self.kept[at], self.ours[at]), (self.rest[at, None] - self.ours[at, None]).to(job.dtype)], -1)
        log_p = torch.cat([self.few.log_probs[at], self.few.log_tail[at, None]], -1).to(log_q)
        p, q = log_p.exp(), log_q.exp()
        terms, pull = job.divergence.parts(p, q, log_p, log_q)
        nothing = 0 * (p + q).sum(-1)  # unless it is no number
        self.losses[at] += terms.sum(-1) * job.soft + nothing
        self.totals[at] = pull.sum(-1) + nothing
        self.kept[at] = pull[:, :-1] * job.factor + q[:, :-1] * self._own(at)
        self.share[at] = pull[:, -1] * job.factor
        self.rest[at] = self.rest[at].masked_fill(self.rest[at] == _NEVER, 0.0)  # where nothing is left, nothing is shared

    def apart(self, z: Tensor, y: Tensor | None, at: slice, start: int, seen: "Seen" = (None, None), *, count: bool, last: bool) -> None:
        """Add the terms of these entries to the losses, and their pulls to what they sum to, where they are to `count`; at `last` the gradient overwrites z."""
        job, (q, p) = self.job, seen
        scaled = _over(z, job.temperature)
        known, pull, log_q = q is not None, None, scaled
        if not known or y is not None:
            log_q = _less(scaled, self.ours[at])
        q = log_q.exp() if q is None else q
        if y is not None:
            log_p = _less(_over(self._target(z, y), job.temperature), self.theirs[at])
            terms, pull = job.divergence.parts(log_p.exp() if p is None else p, q, log_p, log_q)
            if count:
                nothing = 0 * self.theirs[at]  # unless it is no number
                self.losses[at] += terms.sum(-1) * job.soft + nothing
                self.totals[at] += nothing if job.divergence.total is not None else pull.sum(-1) + nothing
        if not last:
            return
        slope = None if job.softcap is None else 1 - (z / job.softcap).square_()
        hard = _less(z, self.first[at]).exp_() if job.hard > 0 and job.temperature != 1 else None
        if pull is not None:
            torch.addcmul(pull.mul_(job.factor) if job.factor != 1 else pull, q, self._own(at), out=z)
        elif self.few is not None:
            self._shared(scaled, q, at, start, z, known)
        else:
            torch.mul(q, job.hard, out=z)
        if hard is not None:
            z.add_(hard, alpha=job.hard)
        if job.hard > 0:
            assert self.labels is not None
            index, inside = _within(self.labels[at, None], start, z.shape[1])
            z.scatter_add_(-1, index.clamp_max(z.shape[1] - 1), inside.to(z.dtype) * -job.hard)
        if slope is not None:
            z.mul_(slope)
        if self.weights is not None:
            z.mul_(self.weights[at, None])

    def _target(self, z: Tensor, y: Tensor) -> Tensor:
        toward = self.job.toward
        return y if toward is None else (z * (1 - toward)).add_(y, alpha=toward)

    def _own(self, at: slice) -> Tensor:
        """What multiplies the student's probabilities in the gradient `[r, 1]`."""
        own = self.totals[at, None] * -self.job.factor
        return (own + self.job.hard if self.job.temperature == 1 else own).to(self.job.dtype)

    def _summed_up(self, q: Tensor | None, index: Tensor, at: slice) -> bool:
        """Know the others' log-sum-exp by their probabilities, of whole rows, if that can be; whether it could (on a GPU nobody waits to be told)."""
        if q is None or self.mass is None:
            return False
        mass = q.scatter(-1, index, 0.0).sum(-1)
        if not bool((mass > _LITTLE).all()):
            return False
        self.mass[at] = mass
        self.rest[at] = self.ours[at] + self.mass[at].log()
        return True

    def _shared(self, scaled: Tensor, q: Tensor, at: slice, start: int, out: Tensor, known: bool) -> None:
        """The gradient that a teacher's likeliest classes give: each kept one its own, the others by their probabilities among themselves."""
        assert self.few is not None
        if known and self.mass is not None and bool((self.mass[at] > 0).all()):
            torch.mul(q, (self._own(at) + (self.share[at] / self.mass[at])[:, None]).to(q.dtype), out=out)
            out.scatter_(-1, self.few.indices[at], self.kept[at])
            return
        index, _ = _within(self.few.indices[at], start, q.shape[1])
        wide = q.new_empty(len(q), q.shape[1] + 1)
        others = _less(scaled, self.rest[at]).exp_().mul_(self.share[at, None].to(q.dtype))
        torch.addcmul(others, q, self._own(at), out=wide[:, :-1])
        out.copy_(wide.scatter_(-1, index, self.kept[at])[:, :-1])


def _normalised(z: Tensor, whole: bool, exact: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """Probabilities of whole rows of logits, and the log-sum-exp, which the likeliest class tells; of parts, of which all may be impossible, the latter."""
    if not whole:
        return None, z.logsumexp(-1)
    p = z.softmax(-1)
    return p, z.amax(-1).to(exact) - p.amax(-1).to(exact).log()


def _less(z: Tensor, lse: Tensor) -> Tensor:
    """Logits less the row's log-sum-exp, which has more digits than they."""
    most = lse.to(z.dtype)
    left = z - most.unsqueeze(-1)
    return left if z.dtype == lse.dtype else left.sub_((lse - most).to(z.dtype).unsqueeze(-1))


def _over(z: Tensor, temperature: float) -> Tensor:
    return z if temperature == 1 else z / temperature


def _within(classes: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Classes as entries of a part from `start` on, and which are in it; those that are not are the entry after its last."""
    inside = (classes >= start) & (classes < start + width)
    return torch.where(inside, classes - start, width), inside
