"""Products of states and a head, part by part: logits on the way there, gradients on the way back, accumulated in float32 at the least.

Shapes: R rows of N, w entries of the vocabulary V from `start` on, D width of the states.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.core.knowledge import Dense, Hidden

__all__ = ["Grads", "go_back", "logits", "room"]

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Room for the gradients of states, weight and bias; None where none is asked for."""
_BLOCK = 1024
"""Entries of the vocabulary that a product on a CPU takes at a time, for each thread: more starve its caches."""


def room(answer: object, size: int, dtype: torch.dtype) -> Tensor | None:
    """Return room for `size` logits of a head; logits that are there anyway need none."""
    return torch.empty(size, dtype=dtype, device=answer.states.device) if isinstance(answer, Hidden) else None


def logits(answer: Hidden | Dense, at: slice, start: int, end: int, into: Tensor | None) -> Tensor:
    """Return logits `[R, end - start]` of rows `at` and entries `start` to `end`: a head's, multiplied out `into` room for them, or those that are there."""
    if isinstance(answer, Dense):
        return answer.logits[at, start:end].detach()
    assert into is not None
    states, weight = answer.states[at].detach(), answer.weight.detach()
    bias = None if answer.bias is None else answer.bias.detach().to(into.dtype)
    z = into[: len(states) * (end - start)].view(len(states), end - start)
    if _rounded(weight, states):
        torch.mm(states, weight[start:end].t(), out_dtype=torch.float32, out=z)
        z.mul_(answer.scale)
        if bias is not None:
            z.add_(bias[start:end], alpha=answer.scale)
    else:
        states = states.to(into.dtype)
        for first, last in _blocks(weight, start, end, into.dtype):
            part, block = z[:, first - start : last - start], weight[first:last].to(into.dtype).t()
            if bias is None:
                torch.addmm(part, states, block, beta=0, alpha=answer.scale, out=part)
            else:
                torch.addmm(bias[first:last], states, block, beta=answer.scale, alpha=answer.scale, out=part)
    return z if answer.softcap is None else z.div_(answer.softcap).tanh_().mul_(answer.softcap)


def go_back(student: Hidden, pull: Tensor, at: slice, start: int, grads: Grads, *, first_rows: bool) -> None:
    """Add what a gradient `pull [R, w]` to the scaled logits of rows `at` and entries from `start` on comes to for states, weight and bias.

    With the `first_rows` the weight's gradient holds nothing yet; with the first entries those of the states do not.
    """
    to_states, to_weight, to_bias = grads
    end, states, weight = start + pull.shape[1], student.states[at].detach(), student.weight.detach()
    if to_bias is not None:
        to_bias[start:end].add_(pull.sum(0), alpha=student.scale)
    if to_states is None and to_weight is None:
        return
    if rounded := _rounded(weight, states):
        pull = pull.to(weight.dtype)
    states = states if rounded else states.to(pull.dtype)
    for first, last in _blocks(weight, start, end, pull.dtype, back=True):
        part = pull[:, first - start : last - start]
        if to_states is not None:
            block, beta = weight[first:last].to(part.dtype), 0.0 if first == 0 else 1.0
            _add(to_states[at], part, block, beta, student.scale, rounded)
        if to_weight is not None:
            _add(to_weight[first:last], part.t(), states, 0.0 if first_rows else 1.0, student.scale, rounded)


def _add(into: Tensor, one: Tensor, other: Tensor, beta: float, alpha: float, rounded: bool) -> None:
    """Make `into` beta into + alpha one other; what it holds is of no account where beta is zero."""
    if not rounded:
        torch.addmm(into, one, other, beta=beta, alpha=alpha, out=into)
    elif beta == 0:
        torch.mm(one, other, out_dtype=torch.float32, out=into)
        into.mul_(alpha)
    else:
        into.add_(torch.mm(one, other, out_dtype=torch.float32), alpha=alpha)


def _rounded(weight: Tensor, states: Tensor) -> bool:
    """Whether products take bfloat16 as it is and give float32: on a GPU, whose own they are.

    On a CPU they are slower than those in float32; float16 would lose gradients of small probabilities.
    """
    return weight.is_cuda and weight.dtype == states.dtype == torch.bfloat16


def _blocks(weight: Tensor, start: int, end: int, dtype: torch.dtype, *, back: bool = False) -> Iterator[tuple[int, int]]:
    """Parts of a vocabulary that products take at a time: the whole, but for what a CPU holds in its caches and what must be cast on the way."""
    step = end - start
    if weight.is_cuda:
        step = 8192 if back or weight.dtype != dtype else step
    elif weight.dtype != dtype or not back:
        step = _BLOCK * torch.get_num_threads()
    for first in range(start, end, step):
        yield first, min(first + step, end)
