"""What one kind of factorization must say of a layer, for ranks to be chosen and the layer to be replaced.

Shapes: K choices of ranks for one layer, D ranks that make one choice (1 for a matrix, 2 for Tucker-2).
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Cost", "Form", "Ladder", "Made", "Seen", "Target", "blank", "chained", "put", "share", "whole"]


@dataclass(frozen=True)
class Seen:
    """At how many positions a layer works for one input, over all its calls: of what enters, of rows that leave by columns that enter, and of what leaves."""

    entering: float = 0.0
    between: float = 0.0
    leaving: float = 0.0


@dataclass(frozen=True)
class Target:
    """A layer that could be factorized: its path, and why it cannot where it cannot."""

    path: str
    layer: nn.Module
    refusal: str = ""
    seen: Seen = Seen()


@dataclass(frozen=True)
class Cost:
    """Weights (biases, which stay, left out) and multiply-accumulates of one input, each `[K]` float64."""

    parameters: Tensor
    macs: Tensor


@dataclass(frozen=True)
class Ladder:
    """Choices of ranks for one layer `[K, D]` and the share of the energy that each keeps `[K]`, float64."""

    ranks: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Made:
    """What takes the layer's place, the share of the energy that it keeps, and what a person would want to know."""

    module: nn.Sequential
    kept: float
    said: Sequence[str] = ()


class Form(ABC):
    """One kind of factorization: a matrix in two, Tucker-2, CP."""

    ranks: int
    """D, how many ranks make one choice."""

    @abstractmethod
    def full(self, target: Target) -> tuple[int, ...]:
        """The ranks at which nothing is lost, `D` of them; no choice may be above."""

    @abstractmethod
    def cost(self, target: Target, ranks: Tensor) -> Cost:
        """What the layer costs at ranks `[K, D]`."""

    @abstractmethod
    def ladder(self, target: Target) -> Ladder:
        """Every choice worth a thought."""

    @abstractmethod
    def made(self, target: Target, ranks: Sequence[int]) -> Made:
        """The layer at these ranks, weights and all."""


def whole(target: Target) -> tuple[float, float]:
    """Weights and multiply-accumulates of a layer as it is."""
    weight = target.layer.weight
    assert isinstance(weight, Tensor)
    return float(weight.numel()), weight.numel() * target.seen.leaving


def share(part: Tensor, total: Tensor) -> Tensor:
    """Return part / total, and one where there is no energy to lose."""
    return part / total if float(total) else torch.ones_like(part)


def blank(make: type[nn.Module], *sizes: Any, like: nn.Module, bias: bool = False, **how: Any) -> nn.Module:
    """Return a layer of zeros of the type, on the device and in the mode of the weight of `like`; no random number is drawn."""
    weight = like.weight
    assert isinstance(weight, Tensor)
    layer = make(*sizes, bias=bias, device="meta", dtype=weight.dtype, **how).to_empty(device=weight.device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer.requires_grad_(weight.requires_grad).train(like.training)


def chained(like: nn.Module, **layers: nn.Module) -> nn.Sequential:
    """Return layers, by their names, one after the other, in the mode of `like`."""
    return nn.Sequential(OrderedDict(layers)).train(like.training)


@torch.no_grad()
def put(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Set the weights of a layer, cast to its type."""
    held, shift = layer.weight, layer.bias
    assert isinstance(held, Tensor)
    held.copy_(weight.reshape(held.shape))
    if isinstance(shift, Tensor):
        assert bias is not None
        shift.copy_(bias)
