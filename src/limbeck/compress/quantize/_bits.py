"""Weights in groups of few bits: codes, scales, zero points, and how they are packed.

w = s (q - z) for each group of `block` weights that go into one output: q and z of 8 or 4 bits, s float16. Its range is [c min(w, 0), c max(w, 0)] for the c of
1, 0.95, ..., 0.5 that leaves the least squared error; zero stays exact. A weight takes bits + (16 + bits) / block bits. Where a scale is no normal float16
(below 2^-14 or above 65,504) the scales of the whole tensor are float32.

Shapes: N outputs, K inputs, G groups of B weights to an output.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["BLOCKS", "Groups", "grouped", "packed"]

BLOCKS = (32, 64, 128)
_SHARES = np.arange(1.0, 0.49, -0.05)
_NORMAL, _LARGEST = 2.0**-14, 65504.0
"""The least and the greatest normal float16."""


@dataclass(frozen=True)
class Groups:
    """Weights `[N, K]` as `codes [N, G, B]`, those past K being the zero's, `scales [N, G]`, float16 where they can be, and `zeros [N, G]`."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    inner: int

    def weights(self) -> np.ndarray:
        """Return what the codes stand for, `[N, K]`."""
        whole = (self.codes.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None].astype(np.float32)
        return whole.reshape(len(whole), -1)[:, : self.inner]


def grouped(weights: np.ndarray, bits: int, block: int) -> Groups:
    """Quantize weights `[N, K]` by groups of `block` along K, the last of which may be shorter."""
    outputs, inner = weights.shape
    padded = np.pad(weights.astype(np.float32), ((0, 0), (0, -inner % block))).reshape(outputs, -1, block)
    low, high, top = np.minimum(padded.min(-1), 0), np.maximum(padded.max(-1), 0), 2**bits - 1
    widest = np.where(high > low, high - low, top) / top
    kind = np.float16 if widest.min(initial=1) * _SHARES[-1] >= _NORMAL and widest.max(initial=1) <= _LARGEST else np.float32
    best: tuple[np.ndarray, ...] | None = None
    for share in _SHARES:
        scale = (widest * share).astype(kind).astype(np.float32)
        zero = np.clip(np.round(-low * share / scale), 0, top).astype(np.float32)
        code = np.clip(np.round(padded / scale[..., None]) + zero[..., None], 0, top)
        error = (((code - zero[..., None]) * scale[..., None] - padded) ** 2).sum(-1)
        if best is None:
            best = error, scale, zero, code
        else:
            better = error < best[0]
            best = tuple(np.where(better[..., None] if new.ndim == 3 else better, new, old) for new, old in zip((error, scale, zero, code), best, strict=True))
    assert best is not None
    _, scale, zero, code = best
    return Groups(code.astype(np.uint8), scale.astype(kind), zero.astype(np.uint8), inner)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along the last axis, the first into the lowest bits of a byte; a byte that is not full ends in zeros.

    >>> packed(np.array([1, 2, 15]), 4).tolist()
    [33, 15]
    """
    each = 8 // bits
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)]
    parts = np.pad(codes.astype(np.uint8), padding).reshape(*codes.shape[:-1], -1, each)
    return np.bitwise_or.reduce(parts << (np.arange(each, dtype=np.uint8) * np.uint8(bits)), axis=-1)
