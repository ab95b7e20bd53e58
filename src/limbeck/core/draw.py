"""Randomness as a function: a counter-based hash, so that a draw depends on its key and its counter and on nothing that was drawn before.

SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) over `counter * GOLDEN + key`.
"""

import math

import torch
from torch import Tensor

__all__ = ["below", "bits", "gaussian", "key", "permutation", "uniform"]

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = (1 << 64) - 1


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _ALL
    z = ((z ^ (z >> 27)) * _SECOND) & _ALL
    return z ^ (z >> 31)


def key(*parts: int) -> int:
    """Return 64 bits that stand for the whole of `parts`, in their order."""
    state = len(parts)
    for part in parts:
        state = _mix((state * _GOLDEN + part) & _ALL)
    return state


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(z: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros: int64's own `>>` copies the sign."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def bits(counters: Tensor, with_key: int) -> Tensor:
    """Return 64 hashed bits for each counter: `counters [N]` int64 -> `[N]` int64, the same on every device."""
    z = (counters * _signed(_GOLDEN)).add_(_signed(with_key))
    z = z.bitwise_xor_(_shift(z, 30)).mul_(_signed(_FIRST))
    z = z.bitwise_xor_(_shift(z, 27)).mul_(_signed(_SECOND))
    return z.bitwise_xor_(_shift(z, 31))


def below(hashed: Tensor, count: int, half: int) -> Tensor:
    """Return whole numbers in `0 <= k < count` from the upper (`half=1`) or lower (`half=0`) 32 bits of a hash; the bias is `count / 2^32`."""
    word = (hashed >> 32 if half else hashed).bitwise_and(0xFFFFFFFF)
    return word.mul_(count).bitwise_right_shift_(32)


def uniform(hashed: Tensor, half: int) -> Tensor:
    """Return real numbers in `0 < u < 1` from the upper (`half=1`) or lower (`half=0`) 32 bits of a hash, float32: odd multiples of 2^-24."""
    return (((hashed >> 32 if half else hashed).bitwise_and(0xFFFFFFFF) >> 9).float() + 0.5) / (1 << 23)


def gaussian(hashed: Tensor) -> Tensor:
    """Return a standard normal number from each hash, float32 (Box and Muller 1958)."""
    return (-2 * uniform(hashed, 1).log()).sqrt() * (2 * math.pi * uniform(hashed, 0)).cos()


def permutation(count: int, with_key: int) -> Tensor:
    """Return a random order of `count` things `[count]`, the same for the same key."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(with_key & 0xFFFFFFFF))
