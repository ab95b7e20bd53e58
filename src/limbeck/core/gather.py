"""What all processes hold, put together."""

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import MismatchError

__all__ = ["gathered"]

_AXES = 8
"""Axes that a tensor may have."""


class _Gathered(torch.autograd.Function):
    """All ranks' tensors one after the other; back goes to each rank the sum of what every rank sends for its part."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        whole = grads[0].clone(memory_format=torch.contiguous_format)  # what comes may be meant for others too
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(x: Tensor) -> Tensor:
    """Return `x [N, ...]` of all processes in order of rank, `[world * N, ...]`: itself where there is one process. Gradients flow through, once.

    Every process must call it. A gradient comes back as the sum over the processes: where each has the same loss of all examples, the mean over processes
    that data-parallel training takes of its weights' gradients is then the gradient of that loss.

    Raises:
        MismatchError: on every process, where their tensors have different shapes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    _check_shapes(x)
    found = _Gathered.apply(x.contiguous())
    assert isinstance(found, Tensor)
    return found


def _check_shapes(x: Tensor) -> None:
    """Refuse what processes would hang or die of."""
    told = torch.tensor([x.ndim, *x.shape, *[0] * (_AXES - x.ndim)], device=x.device)
    every = [torch.empty_like(told) for _ in range(dist.get_world_size())]
    dist.all_gather(every, told)
    shapes = [sizes[:axes] for axes, *sizes in (one.tolist() for one in every)]
    for rank, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise MismatchError(
                f"processes hold tensors of different shapes, {shapes[0]} on rank 0 and {shape} on rank {rank}: "
                "give every process batches of one size (drop_last), or leave gather: true out"
            )
