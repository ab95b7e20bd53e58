"""The least precision in which a loss is computed."""

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and the rest as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
