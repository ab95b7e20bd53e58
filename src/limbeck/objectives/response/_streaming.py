"""The divergence of two heads over a large vocabulary, exact, without ever holding the logits.

For states h `[N, D]` and a head of weight W `[V, D]` and bias b, logits are z = cap(scale (h W^T + b)), with cap(y) = c tanh(y / c) where there is a soft
cap c. Student and teacher may differ in D; of vocabularies of unequal size the entries that one side lacks are impossible on both.

- `tokens`: some rows at a time, over the whole vocabulary: each logit is computed once, and its gradient takes the place of the logit.
- `vocabulary`: all rows, some of the vocabulary at a time: first each row's log-sum-exp, online, then loss and gradient; of a divergence whose pulls have no
  known sum the loss has a pass of its own. It computes every logit twice, or three times, for the least memory where there are many rows.
- `dense`: all rows and the whole vocabulary at once, for what is small anyway.

The gradient is computed with the loss, in closed form (`_divergences`), which is why nothing of the size of the logits is kept for the backward pass. It is
one of the losses' sum: where a head learns, the backward pass refuses to weigh rows unequally, which `weights` is for; and it goes back once. Logits, losses
and gradients are float32, float64 where the student is; of states and heads of 16 bits products are accumulated in float32 and not rounded in between.
Nothing waits for a GPU: what is wrong with labels or weights there is told by an assertion on it.

Shapes: N rows (valid tokens), D width of the states, V vocabulary, k kept classes of a teacher.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, TopK

from ._divergences import Divergence, ForwardKL
from ._streaming_passes import Teaching, by_tokens, by_vocabulary, whole
from ._streaming_plan import Plan, Way, planned
from ._streaming_rows import Job

__all__ = ["Plan", "Way", "planned", "streamed"]

_UNEQUAL = "rows of a streamed loss were weighed unequally, which its head's gradient cannot follow: give their weights as `weights`"
_ONCE = "a streamed loss goes back once, its gradient being given away: compute it again, without retain_graph (which a scheme's balance asks for)"


def streamed(
    student: Hidden | Dense,
    teacher: Teaching,
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
        weights: `[N]`, what each row's loss is multiplied by; they get no gradient.
        budget: bytes of buffers.
        way: forced; chosen by size and budget where it is None.

    Raises:
        MismatchError: sides that do not fit, labels that are no classes, a budget that is too small.
    """
    states = student.logits if isinstance(student, Dense) else student.states
    _check(states, student.classes, teacher, temperature, hard, toward)
    if weights is not None and weights.shape != states.shape[:1]:
        raise MismatchError(f"the student has {len(states)} rows and the weights are {list(weights.shape)}: one is needed for each")
    for side in (student, teacher):
        if isinstance(side, Hidden):
            _check_head(side)
    classes = student.classes if teacher is None or isinstance(teacher, TopK) else min(student.classes, teacher.classes)
    labels = _checked_labels(labels, states, classes) if hard > 0 else None
    if hard == 1:  # the teacher is asked nothing
        teacher, temperature, toward = None, 1.0, None
    parts = [states] if isinstance(student, Dense) else [one for one in (states, student.weight, student.bias) if one is not None]
    dtype = torch.float64 if any(one.dtype == torch.float64 for one in parts) else torch.float32
    plan = planned(len(states), classes, budget=budget, way=way, device=states.device.type, size=dtype.itemsize)
    job = Job(
        divergence or ForwardKL(), temperature, hard, None if toward == 1 else toward, classes, plan.rows, plan.columns, plan.tile, dtype,
        None if isinstance(student, Dense) else student.softcap, torch.is_grad_enabled() and any(one.requires_grad for one in parts),
    )  # fmt: skip
    weights = None if weights is None else weights.detach().to(dtype)
    if isinstance(student, Hidden):
        return _Streamed.apply(states, student.weight, student.bias, student, teacher, labels, weights, job, plan)
    z = student.logits if student.classes == classes else student.logits[:, :classes]
    with torch.no_grad():
        losses, pull = whole(z.detach().to(dtype, copy=True), teacher, labels, weights, job)
    return _pulled(z.to(dtype), losses, pull) if job.learns else losses


def _check(states: Tensor, classes: int, teacher: Teaching, temperature: float, hard: float, toward: float | None) -> None:
    if states.ndim != 2:
        raise MismatchError(f"the student's rows are {list(states.shape)}; rows [N, ...] are streamed: flatten them, valid tokens alone")
    if not states.is_floating_point():
        raise MismatchError(f"the student's rows are {states.dtype}, which no gradient goes through: give floating-point states or logits")
    if not 0 <= hard <= 1 or (toward is not None and not 0 <= toward <= 1):
        raise MismatchError(f"hard is {hard:g} and toward {toward}; both are shares, from 0 to 1")
    if not temperature > 0:
        raise MismatchError(f"the temperature is {temperature:g}; it must be above zero")
    if teacher is None and hard != 1.0:
        raise MismatchError(f"without a teacher there is the cross-entropy alone: give hard=1.0, not {hard:g}")
    if teacher is not None and teacher.predictions != states.shape[:1]:
        raise MismatchError(f"the student has {len(states)} rows and the teacher {list(teacher.predictions)}: both must answer the same tokens")
    if isinstance(teacher, TopK) and (teacher.classes != classes or not math.isclose(teacher.temperature, temperature) or toward is not None):
        moved = "" if toward is None else ", on the way to an interpolated target"
        raise MismatchError(f"the student has {classes} classes at temperature {temperature:g}{moved}, and the teacher is {teacher}, valid there alone")


def _check_head(side: Hidden) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.tensor import DTensor

        if isinstance(side.weight, DTensor):
            raise MismatchError(
                "a head is sharded over processes where the loss is computed: shard the module whose forward computes the loss, the head with it"
            )
    if side.weight.ndim != 2 or side.states.shape[-1] != side.weight.shape[1]:
        raise MismatchError(f"states {list(side.states.shape)} do not fit their head's weight {list(side.weight.shape)}: it must be [classes, width]")
    if side.bias is not None and side.bias.shape != side.weight.shape[:1]:
        raise MismatchError(f"the head's bias {list(side.bias.shape)} does not fit its weight {list(side.weight.shape)}: it must be [classes]")


def _checked_labels(labels: Tensor | None, states: Tensor, classes: int) -> Tensor:
    if labels is None or labels.shape != states.shape[:1] or labels.is_floating_point():
        given = "none are" if labels is None else f"{labels.dtype} {list(labels.shape)} are"
        raise MismatchError(f"the cross-entropy of {len(states)} rows needs as many labels, class numbers, and {given} given")
    sound = (labels >= 0) & (labels < classes)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        if not sound.all():
            raise MismatchError(f"label {int(labels[~sound][0])} is none of {classes} classes both sides know: mask out what does not count")
    else:
        torch._assert_async(sound.all(), f"a label is none of {classes} classes both sides know: mask out what does not count")  # pyright: ignore[reportPrivateImportUsage]
    return labels.long()


def _pulled(z: Tensor, losses: Tensor, pull: Tensor) -> Tensor:
    """Losses of rows of logits that are there, with the gradient of each."""
    if not torch.compiler.is_compiling():
        return _Pulled.apply(z, losses, pull)
    moved = torch.where(pull == 0, 0.0, z * pull).sum(-1)  # of no account but for its gradient; the compiler warns of functions of one's own
    return losses + (moved - moved.detach())


def _check_once() -> None:
    if torch.is_grad_enabled():
        raise MismatchError("the gradient of this loss is computed in closed form and has no graph of its own: leave out create_graph")


class _Pulled(torch.autograd.Function):
    """Losses of rows of logits that are there, and the gradient of each."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, losses: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(pull)
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _check_once()
        (pull,) = ctx.saved_tensors
        return pull * grad_outputs[0].unsqueeze(-1), None, None


class _Streamed(torch.autograd.Function):
    """Losses of rows, and the gradient of their sum."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, student: Hidden, teacher: Teaching, labels: Any, weights: Any, job: Job, plan: Plan
    ) -> Tensor:
        asked = [one if wanted and job.learns else None for one, wanted in zip((states, weight, bias), ctx.needs_input_grad[:3], strict=True)]
        new = [None if one is None else torch.empty_like(one, dtype=job.dtype, memory_format=torch.contiguous_format) for one in asked]
        for one, unseen in zip(new, (0, job.classes if len(states) else 0, 0), strict=True):  # what the passes do not write
            if one is not None and (one.ndim == 1 or not len(states) or unseen):
                one[unseen:].zero_()
        to_states, to_weight, to_bias = new
        ctx.grads, ctx.kinds = (to_states, to_weight, to_bias), [None if one is None else one.dtype for one in asked]
        passes = by_vocabulary if plan.way == "vocabulary" else by_tokens
        return passes(replace(student, states=states, weight=weight, bias=bias), teacher, labels, weights, job, (to_states, to_weight, to_bias))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _check_once()
        upstream, (grads, kinds) = grad_outputs[0], (ctx.grads, ctx.kinds)
        if grads is None:
            raise MismatchError(_ONCE)
        ctx.grads = None
        if grads[1] is None and grads[2] is None:  # each row for itself
            factor = upstream.unsqueeze(-1)
        else:
            factor = upstream[0] if upstream.numel() else upstream.new_zeros(())
            alike = ((upstream == factor) | factor.isnan()).all()
            if upstream.device.type != "cpu":
                torch._assert_async(alike, _UNEQUAL)  # pyright: ignore[reportPrivateImportUsage]
            elif not alike:
                raise MismatchError(_UNEQUAL)
        out = [None if one is None else one.mul_(factor).to(kind) for one, kind in zip(grads, kinds, strict=True)]
        return (*out, None, None, None, None, None, None)
