"""Vectors without their mean, of length one: what correlations and z-scores are made of."""

import torch
from torch import Tensor

__all__ = ["centred"]


def centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean) / ||x - mean|| over the last axis, ||x - mean|| `[..., 1]`, and where `[..., 1]` x varies by more than rounding.

    A constant has no direction: its vector is zero, without a gradient. Sizes from 1e-30 up do not underflow in float32.
    """
    info = torch.finfo(x.dtype)
    gap = x - x.mean(-1, keepdim=True)
    size = gap.detach().abs().amax(-1, keepdim=True)
    noise = (4 * info.eps * x.detach().abs().amax(-1, keepdim=True)).clamp_min(1e8 * info.tiny)
    varies = ~(size <= noise)  # what is not a number is not constant
    scaled = torch.where(varies, gap, 0.0) / torch.where(varies, size, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(varies, length, 1.0), length * size, varies
