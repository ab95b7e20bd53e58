"""How the losses of a divergence over a large vocabulary, and their gradient, are computed part by part; `_streaming` says what and when.

Shapes: N rows, R of them at a time, V vocabulary, k kept classes of a teacher.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.bridges import triton
from limbeck.core.knowledge import Dense, Hidden, TopK

from ._streaming_products import Grads, go_back, logits, room
from ._streaming_rows import Job, Rows

__all__ = ["Teaching", "by_tokens", "by_vocabulary", "fused", "whole"]

Teaching = Hidden | Dense | TopK | None


def whole(z: Tensor, teacher: Teaching, labels: Tensor | None, weights: Tensor | None, job: Job) -> tuple[Tensor, Tensor]:
    """Return the losses of all rows of logits `[N, V]`, and the gradient that takes their place."""
    losses = torch.empty(len(z), dtype=job.dtype, device=z.device)
    space = room(teacher, min(job.rows, len(z)) * job.classes, job.dtype)
    for at in _slices(len(z), job.rows):
        losses[at] = _chunk(z[at], teacher, labels, weights, at, space, job)
    return losses, z


def by_tokens(student: Hidden, teacher: Teaching, labels: Tensor | None, weights: Tensor | None, job: Job, grads: Grads) -> Tensor:
    """Return the losses of all rows, some rows at a time, and write `grads`."""
    count = student.predictions[0]
    losses = torch.empty(count, dtype=job.dtype, device=student.states.device)
    ours, theirs = (room(one, min(job.rows, count) * job.classes, job.dtype) for one in (student, teacher))
    for at in _slices(count, job.rows):
        z = logits(student, at, 0, job.classes, ours)
        losses[at] = _chunk(z, teacher, labels, weights, at, theirs, job)
        if job.learns:
            go_back(student, z, at, 0, grads, first_rows=at.start == 0)
    return losses


def _chunk(z: Tensor, teacher: Teaching, labels: Tensor | None, weights: Tensor | None, at: slice, space: Tensor | None, job: Job) -> Tensor:
    """Losses of rows `at`, whose whole logits are z; their gradient overwrites these."""
    y = None if teacher is None or isinstance(teacher, TopK) else logits(teacher, at, 0, job.classes, space)
    if fused(z, teacher):
        share = next(iter(job.divergence.model_dump(exclude={"kind"}).values()), 0.0)
        how = {"temperature": job.temperature, "hard": job.hard, "toward": job.toward, "softcap": job.softcap, "learns": job.learns}
        parts = (None if one is None else one[at] for one in (labels, weights))
        return triton.settle(z, y, *parts, kind=job.divergence.kind, share=share, **how)
    rows = _rows(len(z), z.device, teacher, at, labels, weights, job)
    for tile in _slices(len(z), max(1, job.tile // max(1, job.classes))):
        ours, theirs = z[tile], None if y is None else y[tile].to(job.dtype)
        seen = rows.look(ours, theirs, tile, 0)
        rows.looked(tile)
        if job.learns or theirs is not None:
            rows.apart(ours, theirs, tile, 0, seen, count=True, last=job.learns)
    return rows.weighed


def fused(z: Tensor, teacher: Teaching) -> bool:
    """Return whether a kernel settles whole rows of logits: on a GPU with Triton, but for a teacher's likeliest classes."""
    return z.is_cuda and z.dtype == torch.float32 and not isinstance(teacher, TopK) and triton.available() and not torch.compiler.is_compiling()


def by_vocabulary(student: Hidden, teacher: Teaching, labels: Tensor | None, weights: Tensor | None, job: Job, grads: Grads) -> Tensor:
    """Return the losses of all rows and write `grads`, in passes over the vocabulary: normalisers, then losses and gradients.

    Where it is not known what the pulls of all classes sum to, losses and sums have a pass of their own.
    """
    count = student.predictions[0]
    every, blocks = slice(0, count), list(_slices(job.classes, job.columns))
    ours, theirs = (room(one, count * min(job.columns, job.classes), job.dtype) for one in (student, teacher))
    rows = _rows(count, student.states.device, teacher, every, labels, weights, job)
    asked = teacher is not None and not isinstance(teacher, TopK)

    def part(block: slice) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor | None, slice]]]:
        z = logits(student, every, block.start, block.stop, ours)
        y = None if teacher is None or isinstance(teacher, TopK) else logits(teacher, every, block.start, block.stop, theirs)
        tiles = _slices(count, max(1, job.tile // z.shape[1]))
        return z, ((z[tile], None if y is None else y[tile].to(job.dtype), tile) for tile in tiles)

    for block in blocks:
        for z, y, tile in part(block)[1]:
            rows.look(z, y, tile, block.start)
    rows.looked(every)
    apart = asked and not (job.learns and job.divergence.total is not None)
    for block in blocks if apart else ():
        for z, y, tile in part(block)[1]:
            rows.apart(z, y, tile, block.start, count=True, last=False)
    for block in blocks if job.learns else ():
        whole, tiles = part(block)
        for z, y, tile in tiles:
            rows.apart(z, y, tile, block.start, count=not apart, last=True)
        go_back(student, whole, every, block.start, grads, first_rows=True)
    return rows.weighed


def _rows(count: int, device: torch.device, teacher: Teaching, at: slice, labels: Tensor | None, weights: Tensor | None, job: Job) -> Rows:
    few = None
    if isinstance(teacher, TopK):
        few = replace(teacher, log_probs=teacher.log_probs[at].detach(), indices=teacher.indices[at], log_tail=teacher.log_tail[at].detach())
    return Rows(count, device, few, None if labels is None else labels[at], None if weights is None else weights[at], job)


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
