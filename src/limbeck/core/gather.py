"""What all processes hold, put together."""

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["gathered"]


class _Gathered(torch.autograd.Function):
    """All ranks' tensors one after the other; back goes to each rank the sum of what every rank sends for its part."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(x: Tensor) -> Tensor:
    """Return `x [N, ...]` of all processes in order of rank, `[world * N, ...]`: itself where there is one process. Gradients flow through.

    Every process must call it, with tensors of one shape.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    found = _Gathered.apply(x.contiguous())
    assert isinstance(found, Tensor)
    return found
