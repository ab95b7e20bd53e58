"""Masks as a function of who is masked and when: no generator, no state, the same in every batch, on every rank and after a resume.

SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) over example, epoch and place.
"""

import torch
from torch import Tensor

__all__ = ["kept"]

_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64, which wraps
_BITS = 24


def _shift(z: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros: int64's own `>>` copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def kept(ids: Tensor, count: int, *, ratio: float, epoch: int, layer: int) -> Tensor:
    """Return which of `count` places of each example are kept, `[N, count]`: each is masked with probability `ratio` (to 2^-24), by itself.

    `ids [N]` are int64; every epoch and every layer has its own draw.
    """
    key = _mix(_mix(ids * _GOLDEN + layer) + epoch)
    places = torch.arange(count, device=ids.device) * _GOLDEN
    return _shift(_mix(key[:, None] + places), 64 - _BITS) >= round(ratio * 2**_BITS)
