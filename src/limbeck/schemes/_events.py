"""What a sequence still surprises with, and a recurrent layer whose gradients reach back a few steps only.

Shapes: N sequences, T steps that are read, T + 1 symbols (the last one is only predicted), C symbols in all, M events of a sequence at the most, H units.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Events", "events", "surprising", "truncated"]


def truncated(layer: nn.Module, x: Tensor, window: int | None) -> Tensor:
    """Return a recurrent layer's states `[N, T, H]` over `x [N, T, D]`, the state detached after every `window` steps; whole gradients where it is None.

    The gradient of what is read at step t (from 0) ends at step `t - t % window`: it never crosses `window` steps.
    """
    states: list[Tensor] = []
    before: Tensor | None = None
    for part in x.split(window or x.shape[1], 1):
        found = layer(part, before)
        before = found[:, -1].detach()
        states.append(found)
    return torch.cat(states, 1)


def surprising(logits: Tensor, symbols: Tensor, threshold: float) -> Tensor:
    """Return which of `symbols [N, T + 1]` were given a probability below `threshold` by the predictions before them `[N, T, C]`; the first always was."""
    given = logits.softmax(-1).gather(-1, symbols[:, 1:, None]).squeeze(-1)
    return torch.cat([torch.ones_like(symbols[:, :1], dtype=torch.bool), given < threshold], 1)


class Events(NamedTuple):
    """The unexpected symbols of each sequence, in their order and closed up.

    `inputs [N, M, C + 1]`: each one-hot, and how long after the one before it came, as a share of T; zeros where a sequence has fewer. `following [N, M]`: the
    event after each. `followed [N, M]`: whether there is one. `place [N, T + 1]`: the last event up to each step.
    """

    inputs: Tensor
    following: Tensor
    followed: Tensor
    place: Tensor


def events(symbols: Tensor, surprise: Tensor, classes: int) -> Events:
    """Return what of `symbols [N, T + 1]` was a `surprise [N, T + 1]`, the first of each sequence among it."""
    counts = surprise.sum(1, keepdim=True)
    longest = int(counts.max())
    at = (~surprise).to(torch.int8).argsort(dim=1, stable=True)[:, :longest]  # steps with events first, in their order
    number = torch.arange(longest, device=symbols.device)
    seen = symbols.gather(1, at)
    gap = at.diff(dim=1, prepend=at[:, :1]) / (symbols.shape[1] - 1)
    inputs = torch.cat([F.one_hot(seen, classes).to(gap), gap.unsqueeze(-1)], -1) * (number < counts).unsqueeze(-1)
    return Events(inputs, seen.roll(-1, 1), number < counts - 1, surprise.cumsum(1) - 1)
