"""The least precision in which a loss is computed, and what is learnt for it."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["at_least_float32", "place"]


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and the rest as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def place(feature: Tensor) -> dict[str, Any]:
    """Return where what is learnt from a feature lives, as layers of torch take it: its device, float32 at least."""
    return {"device": feature.device, "dtype": torch.promote_types(feature.dtype, torch.float32)}
