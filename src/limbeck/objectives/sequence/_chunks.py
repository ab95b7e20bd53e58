"""Where two divisions of the same bytes agree.

A prediction is about the bytes from its start to its end. A chunk goes from a start that both sides have to the next end that both have: some tokens of the
one, some of the other, the same bytes.

Shapes: N texts, T predictions of the student's, U of the teacher's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Chunks", "chunked"]

_FAR = 1 << 40


class Chunks(NamedTuple):
    """`of [N, T]`: the student's first prediction of the chunk that each is in, -1 in none; `theirs [N, U]`: the same of the teacher's predictions.

    `closes [N, T]`: whether a chunk ends with it; `partner [N, T]`: there, the teacher's prediction that ends it; `single [N, T]`: there, whether the chunk is
    one token on both sides.
    """

    of: Tensor
    theirs: Tensor
    closes: Tensor
    partner: Tensor
    single: Tensor


def chunked(starts: Tensor, ends: Tensor, their_starts: Tensor, their_ends: Tensor) -> Chunks:
    """Divide texts into chunks: bytes where predictions start and end, `[N, T]` and `[N, U]`, ascending, negative where nothing is predicted.

    Of the teacher's, what is negative comes last.

    >>> both = chunked(*(torch.tensor([one]) for one in ([0, 1, 2, 4], [1, 2, 4, 5], [0, 1, 4], [1, 4, 5])))
    >>> both.of.tolist(), both.theirs.tolist(), both.closes.tolist(), both.single.tolist()
    ([[0, 1, 1, 3]], [[0, 1, 3]], [[True, False, True, True]], [[True, False, False, True]])
    """
    here, there = (torch.arange(one.shape[1], device=one.device).expand_as(one) for one in (starts, their_starts))
    begun, opens = _found(starts, their_starts)
    partner, closes = _found(ends, their_ends)
    none = torch.full_like(here, -1)
    of = torch.where(opens, here, none).cummax(1).values
    first = torch.full_like(there, -1).scatter_reduce(1, begun, torch.where(opens, here, none), "amax")  # at the teacher's tokens that open a chunk
    theirs = first.cummax(1).values
    closes = closes & (of >= 0)
    last = torch.full_like(here, -1).scatter_reduce(1, of.clamp(min=0), torch.where(closes, here, none), "amax")
    ended = last.gather(1, of.clamp(min=0))
    until = torch.full_like(here, -1).scatter_reduce(1, of.clamp(min=0), torch.where(closes, partner, none), "amax")
    inside = (of >= 0) & (here <= ended)
    theirs_inside = (theirs >= 0) & (there <= until.gather(1, theirs.clamp(min=0)))
    of, theirs = torch.where(inside, of, -1), torch.where(theirs_inside, theirs, -1)
    single = closes & (of == here) & (begun == partner) & opens
    return Chunks(of, theirs, closes & inside, partner, single)


def _found(asked: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of `asked [N, T]` is among the ascending `among [N, U]`, and whether it is there."""
    held = torch.where(among < 0, _FAR, among.long()).contiguous()
    place = torch.searchsorted(held, asked.long().contiguous()).clamp(max=among.shape[1] - 1)
    return place, (held.gather(1, place) == asked) & (asked >= 0)
