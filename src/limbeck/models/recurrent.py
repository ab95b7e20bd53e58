"""A plain recurrent network.

Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
"""

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError

from ._arguments import check_classes, check_whole

__all__ = ["Recurrent"]


class _Elman(nn.Module):
    """h_t = tanh(W x_t + b + U h_{t-1}): `[N, T, D]`, and the state before the first step `[N, width]` or zeros, to `[N, T, width]`."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.state = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        driven = self.input(x)
        state = torch.zeros_like(driven[:, 0]) if state is None else state
        states: list[Tensor] = []
        for drive in driven.unbind(1):
            state = torch.tanh(drive + self.state(state))
            states.append(state)
        return torch.stack(states, 1)


class Recurrent(nn.Module):
    """A recurrent network of tanh units; a linear head reads the last state.

    `h_t = tanh(W x_t + b + U h_{t-1})`, `h_0 = 0`; logits are `V h_T + c`. Examples `(T, D)` are read as T steps of D numbers, images `(C, H, W)` row by row,
    H steps of C W numbers, and vectors `(F,)` in one step. Stage ends: `layer1 [N, T, width]`, every state; `head [N, C]`.
    Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.

    Args:
        width: units.

    Raises:
        MismatchError: examples of another shape, or with an empty axis.
        RecipeError: fewer units than one.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, width: int = 32) -> None:
        super().__init__()
        check_classes("Recurrent", classes)
        check_whole("width", width)
        if not 1 <= len(in_shape) <= 3 or min(in_shape) < 1:
            given = f"examples of shape {tuple(in_shape)}"
            raise MismatchError(f"Recurrent reads sequences (T, D), images (C, H, W) or vectors (F,), not {given}: use the model mlp")
        self.layer1 = _Elman(in_shape[0] * in_shape[2] if len(in_shape) == 3 else in_shape[-1], width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, T, D]`, `[N, C, H, W]` or `[N, F]` to logits `[N, C]`."""
        if x.dim() == 4:
            x = x.transpose(1, 2).flatten(2)
        elif x.dim() == 2:
            x = x.unsqueeze(1)
        return self.head(self.layer1(x)[:, -1])
