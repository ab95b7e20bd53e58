"""Numbers made small: states in 32, 16 or 8 bits, and distributions as counts of draws.

Shapes: n tokens, D width of a state, V classes, c draws.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.draw import bits, key

__all__ = ["dequantized", "drawn", "quantized"]

Dtype = Literal["float32", "bfloat16", "int8"]
_DRAWN = 20  # what a hash is for


def quantized(states: Tensor, dtype: Dtype) -> dict[str, npt.NDArray[Any]]:
    """Return states `[n, D]` as columns: float32; bfloat16, as the upper half of float32; int8 with a scale for each row, the largest value being 127 of it."""
    values = states.detach().float()
    if dtype == "float32":
        return {"states": values.cpu().numpy()}
    if dtype == "bfloat16":
        return {"states": values.bfloat16().cpu().view(torch.int16).numpy().view(np.uint16)}
    scale = values.abs().amax(-1) / 127 if values.shape[-1] else values.sum(-1)
    steps = (values / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)).round_().clamp_(-127, 127)
    return {"states": steps.to(torch.int8).cpu().numpy(), "scale": scale.cpu().numpy()}


def dequantized(read: Callable[[str], npt.NDArray[Any]], dtype: Dtype) -> Tensor:
    """Return states `[n, D]` float32 of the columns that `read` gives.

    >>> dequantized({"states": np.array([[1, -2]], np.int8), "scale": np.array([0.5], np.float32)}.__getitem__, "int8")
    tensor([[ 0.5000, -1.0000]])
    """
    states = read("states")
    if dtype == "float32":
        return torch.from_numpy(states.astype(np.float32, copy=False))
    if dtype == "bfloat16":
        return torch.from_numpy(states.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(states).float() * torch.from_numpy(read("scale").astype(np.float32, copy=False)).unsqueeze(-1)


def drawn(logits: Tensor, counters: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw `count` classes with replacement from softmax(logits / T) of each row `[n, V]`; return `count` classes, none twice, and how often each came.

    What is drawn is a function of `counters [n]`. Where fewer came than there is room for, the likeliest of the others fill it, with a count of zero.
    """
    p = (logits.double() / temperature).softmax(-1)
    reached = p.cumsum(-1)
    hashed = bits(counters[:, None] + torch.arange(count, device=counters.device), key(_DRAWN))
    u = ((hashed >> 11).bitwise_and((1 << 53) - 1).double() + 0.5) / (1 << 53)
    classes = torch.searchsorted(reached, u * reached[:, -1:]).clamp_max_(p.shape[-1] - 1)
    times = torch.zeros_like(p).scatter_add_(-1, classes, torch.ones_like(u))
    indices = (times + p).topk(count).indices
    return indices, times.gather(-1, indices).long()
