"""Biased weight decay: what is small decays, what is large is left alone.

Hanson and Pratt, "Comparing Biases for Minimal Network Construction with Back-Propagation", NIPS 1988.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.schedule import Number, check_number
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32

from ._weights import Layers, Weighed, by_output

__all__ = ["BiasedDecay", "biased_decay_loss"]


def biased_decay_loss(
    weights: Tensor, *, bias: Literal["hyperbolic", "exponential"] = "hyperbolic", each: Literal["unit", "weight"] = "unit", steepness: float = 1.0
) -> Tensor:
    """Return the sum of B(s), hyperbolic s / (1 + lambda s) or exponential 1 - exp(-lambda s), lambda the steepness.

    s is sum_j |w_ij| of each unit i, or |w_ij| of each weight. Weights `[U, K]`, a row for each unit, give a scalar, in float32 at least. The derivative by
    w_ij is sgn(w_ij) / (1 + lambda s)^2, and sgn(w_ij) lambda exp(-lambda s): zero at w_ij = 0.

    Raises:
        RecipeError: a steepness that is not above zero.
        MismatchError: weights that are not a row for each unit.

    >>> import torch
    >>> biased_decay_loss(torch.tensor([[1.0, -2.0], [0.0, 1.0]]))
    tensor(1.2500)
    """
    check_number("steepness", steepness, positive=True)
    if weights.ndim != 2:
        raise MismatchError(f"biased decay takes a row of weights for each unit, [U, K], not {list(weights.shape)}")
    size = at_least_float32(weights).abs()
    size = size.sum(1) if each == "unit" else size
    if bias == "hyperbolic":
        return (size / (1 + steepness * size)).sum()
    return -torch.expm1(-steepness * size).sum()


class BiasedDecay(Weighed):
    """Decay by a penalty that levels off, hyperbolic s / (1 + lambda s) or exponential 1 - exp(-lambda s): units that do little vanish, the others are spared.

    Hanson & Pratt 1988 (sections on the hyperbolic and the exponential bias), with s = sum_j |w_ij| over the weights that come into unit i; per weight,
    s = |w_ij|. Ordinary decay pulls at a weight in proportion to its size; here the pull is strongest at zero and falls with s. `weight` scales the whole,
    `steepness` is their lambda: 1 / lambda is the size at which a unit or weight begins to be spared. A filter is a unit. It reads no example.

    Args:
        bias: hyperbolic or exponential.
        each: whether the weights into a unit are judged together (unit) or every one by itself (weight).
        steepness: lambda, above zero. May follow a schedule.
        layers: paths of modules whose weights are penalised, with all inside them; auto takes every linear, convolutional, attention and recurrent layer.

    Raises:
        RecipeError: a steepness that is not above zero, an empty list of layers.
        MismatchError: a layer without weights.

    Example:
        {kind: sparsity.biased_decay, bias: hyperbolic, each: unit, layers: [head], weight: 0.001}
    """

    def __init__(
        self,
        *,
        bias: Literal["hyperbolic", "exponential"] = "hyperbolic",
        each: Literal["unit", "weight"] = "unit",
        steepness: Number = 1.0,
        layers: Layers = "auto",
    ) -> None:
        super().__init__(layers)
        check_choice(self, "bias", bias, ("hyperbolic", "exponential"))
        check_choice(self, "each", each, ("unit", "weight"))
        check_number("steepness", steepness, positive=True)
        self.bias: Literal["hyperbolic", "exponential"] = bias
        self.each: Literal["unit", "weight"] = each
        self.steepness = steepness

    def penalty(self, layer: nn.Module, weight: Tensor) -> Tensor:
        return biased_decay_loss(by_output(layer, weight), bias=self.bias, each=self.each, steepness=self.now(self.steepness))
