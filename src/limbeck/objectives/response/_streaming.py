"""The divergence of two heads over a large vocabulary, exact, without ever holding the logits.

For states h `[N, D]` and a head of weight W `[V, D]` and bias b, logits are z = cap(scale (h W^T + b)), with cap(y) = c tanh(y / c) where there is a soft
cap c. Student and teacher may differ in D; of vocabularies of unequal size the entries that one side lacks are impossible on both.

- `tokens`: some rows at a time, over the whole vocabulary: each logit is computed once, and its gradient takes the place of the logit.
- `vocabulary`: all rows, some of the vocabulary at a time, in three passes: first each row's log-sum-exp, online, then its loss, then its gradient. It computes
  every logit three times, for the least memory where there are many rows.
- `dense`: all at once, for what is small anyway.

The gradient is computed with the loss, in closed form (`_divergences`), which is why nothing of the size of the logits is kept for the backward pass. It is
one of the losses' sum: with a head the backward pass refuses to weigh rows unequally, which `weights` is for. Logits, losses and gradients are float32
whatever the states are; where these have 16 bits, products are accumulated in float32 and not rounded in between.

Shapes: N rows (valid tokens), D width of the states, V vocabulary, k kept classes of a teacher.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Response, TopK

from ._divergences import Divergence, ForwardKL
from ._streaming_passes import Job, by_tokens, by_vocabulary, whole

__all__ = ["Plan", "planned", "streamed"]

_UNEQUAL = "rows of a streamed loss were weighed unequally, which its head's gradient cannot follow: give their weights as `weights`"
Way = Literal["dense", "tokens", "vocabulary"]
_BUFFERS = 6
"""Buffers of the size of a chunk of logits that are alive at once, at the most."""
_SMALL = 1 << 21
"""Logits of one side up to which all at once is the fastest."""
_ROWS = 256
"""Rows at a time at which products run at full speed, and above which nothing is gained."""
_LEAST = 16
"""Rows at a time below which products starve: less memory than these need asks for the other way."""


@dataclass(frozen=True)
class Plan:
    """How it is computed: `rows` at a time, `columns` of the vocabulary at a time."""

    way: Way
    rows: int
    columns: int

    def __str__(self) -> str:
        told = {"dense": "all logits at once", "tokens": f"{self.rows} rows at a time", "vocabulary": f"{self.columns} of the vocabulary at a time, thrice"}
        return told[self.way]


def planned(rows: int, columns: int, *, budget: int | None = None, way: Way | None = None) -> Plan:
    """Return how N = `rows` by V = `columns` logits are computed within `budget` bytes of buffers, as fast as can be where it is None.

    Raises:
        MismatchError: a budget in which not a row or a column of the vocabulary fits.

    >>> str(planned(1024, 50257)), str(planned(1024, 50257, budget=20_000_000)), str(planned(8, 100))
    ('256 rows at a time', '16 rows at a time', 'all logits at once')
    """
    each = 4 * _BUFFERS
    if way is None and rows * columns <= _SMALL and (budget is None or each * rows * columns <= budget):
        way = "dense"
    if way == "dense":
        return Plan("dense", max(rows, 1), columns)
    fits = _ROWS if budget is None else min(_ROWS, budget // (each * columns))
    if way is None:
        way = "tokens" if fits >= min(_LEAST, rows) else "vocabulary"
    if way == "tokens":
        if fits < 1:
            raise MismatchError(f"a row of {columns:,} logits takes {each * columns:,} bytes of buffers, and the budget is {budget:,}: allow more")
        return Plan("tokens", min(fits, max(rows, 1)), columns)
    block = columns if budget is None else budget // (each * max(rows, 1))
    if block < 1:
        raise MismatchError(f"a column of {rows:,} rows takes {each * rows:,} bytes of buffers, and the budget is {budget:,}: allow more, or give fewer rows")
    return Plan("vocabulary", max(rows, 1), min(block, columns, 8192))


def streamed(
    student: Hidden | Dense,
    teacher: Hidden | Dense | TopK | None,
    labels: Tensor | None = None,
    *,
    divergence: Divergence | None = None,
    temperature: float = 1.0,
    hard: float = 0.0,
    toward: float | None = None,
    weights: Tensor | None = None,
    budget: int | None = None,
    way: Way | None = None,
) -> Tensor:
    """Return (1 - hard) T^2 D(p, q) + hard CE(labels, q at T = 1) of every row, `[N]`, with gradients to the student's states and head.

    Args:
        student: states `[N, D]` and a head, or logits `[N, V]`; parts that require no gradient get none.
        teacher: states and a head of its own, logits `[N, V]`, or its likeliest classes at this temperature, the others being one class; None for the
            cross-entropy alone, `hard` 1.
        labels: `[N]`, of rows that count; needed where `hard` is above zero.
        divergence: D; the forward KL where it is None.
        temperature: T.
        hard: the share of the cross-entropy.
        toward: t in [0, 1] of TAID's target, softmax(((1 - t) z_student + t z_teacher) / T), the student's part held fixed (Shing et al. 2025,
            arXiv:2501.16937, sec. 3).
        weights: `[N]`, what each row's loss is multiplied by.
        budget: bytes of buffers.
        way: forced; chosen by size and budget where it is None.

    Raises:
        MismatchError: sides that do not fit.
    """
    states = student.logits if isinstance(student, Dense) else student.states
    _check(states, student.classes, teacher, labels, temperature, hard, toward)
    few = isinstance(teacher, TopK)
    classes = student.classes if teacher is None or few else min(student.classes, teacher.classes)
    plan = planned(len(states), classes, budget=budget, way=way)
    if few and plan.way == "vocabulary":
        raise MismatchError("a teacher's likeliest classes are not looked up in parts of the vocabulary: take way='tokens', or a larger budget")
    job = Job(divergence or ForwardKL(), temperature, hard, None if teacher is None else toward, classes, plan.way == "vocabulary", plan.rows, plan.columns)
    if isinstance(student, Dense):
        return whole(student.logits, teacher, labels, weights, job)
    return _Streamed.apply(states, student.weight, student.bias, student, teacher, labels, weights, job)


def _check(states: Tensor, classes: int, teacher: Response | None, labels: Tensor | None, temperature: float, hard: float, toward: float | None) -> None:
    if states.ndim != 2:
        raise MismatchError(f"the student's rows are {list(states.shape)}; rows [N, ...] are streamed: flatten them, valid tokens alone")
    if not 0 <= hard <= 1 or (toward is not None and not 0 <= toward <= 1):
        raise MismatchError(f"hard is {hard:g} and toward {toward}; both are shares, from 0 to 1")
    if teacher is None and hard != 1.0:
        raise MismatchError(f"without a teacher there is the cross-entropy alone: give hard=1.0, not {hard:g}")
    if hard > 0 and (labels is None or labels.shape != states.shape[:1]):
        given = "none are" if labels is None else f"{list(labels.shape)} are"
        raise MismatchError(f"the cross-entropy of {len(states)} rows needs as many labels, and {given} given")
    if teacher is not None and teacher.predictions != states.shape[:1]:
        raise MismatchError(f"the student has {len(states)} rows and the teacher {list(teacher.predictions)}: both must answer the same tokens")
    if isinstance(teacher, TopK) and (teacher.classes != classes or not math.isclose(teacher.temperature, temperature) or toward is not None):
        moved = "" if toward is None else ", on the way to an interpolated target"
        raise MismatchError(f"the student has {classes} classes at temperature {temperature:g}{moved}, and the teacher is {teacher}, valid there alone")


class _Streamed(torch.autograd.Function):
    """Losses of rows, and the gradient of their sum."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, student: Hidden, teacher: Any, labels: Any, weights: Any, job: Job) -> Tensor:
        parts = (states, weight, bias)
        asked = [None if one is None or not wanted else one for one, wanted in zip(parts, ctx.needs_input_grad[:3], strict=True)]
        grads = tuple(None if one is None else torch.zeros_like(one, dtype=torch.float32) for one in asked)
        ctx.grads, ctx.kinds = grads, [None if one is None else one.dtype for one in parts]
        return (by_vocabulary if job.by_vocabulary else by_tokens)(student, teacher, labels, weights, job, grads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        upstream, (grads, kinds) = grad_outputs[0], (ctx.grads, ctx.kinds)
        if grads is None:
            raise MismatchError("a streamed loss goes back once: its gradient was given away; compute the loss again")
        ctx.grads = None
        factor = upstream[0] if upstream.numel() else upstream.new_zeros(())
        torch._assert_async((upstream == factor).all(), _UNEQUAL)  # pyright: ignore[reportPrivateImportUsage]
        out = [None if one is None else one.mul_(factor).to(kind) for one, kind in zip(grads, kinds, strict=True)]
        return (*out, None, None, None, None, None)
