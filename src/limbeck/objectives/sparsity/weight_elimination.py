"""Weight elimination: the cost of a weight is the cost of having it at all.

Weigend, Rumelhart and Huberman, "Generalization by Weight-Elimination with Application to Forecasting", NIPS 1990.
"""

from torch import Tensor, nn

from limbeck.core.schedule import Number, check_number
from limbeck.objectives._precision import at_least_float32

from ._weights import Layers, Weighed

__all__ = ["WeightElimination", "weight_elimination_loss"]


def weight_elimination_loss(weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return the sum of (w / w_0)^2 / (1 + (w / w_0)^2) over all weights, w_0 the scale.

    Weights of any shape give a scalar, in float32 at least: about how many of them are larger than w_0.

    Raises:
        RecipeError: a scale that is not above zero.

    >>> import torch
    >>> weight_elimination_loss(torch.tensor([0.0, 1.0, -3.0]))
    tensor(1.4000)
    """
    check_number("scale", scale, positive=True)
    square = (at_least_float32(weights) / scale).clamp(-_FAR, _FAR).square()
    return (square / (1 + square)).sum()


_FAR = 1e9
"""Where a weight has cost its whole price to any precision, and its square is still a number."""


class WeightElimination(Weighed):
    """Count the weights, softly: sum (w / w_0)^2 / (1 + (w / w_0)^2), which is decay for weights far below w_0 and a fixed price for those far above it.

    Weigend, Rumelhart & Huberman 1990. A small w_0 leads to a few large weights, a large w_0 to many small ones. `weight` is their lambda, which they move by
    hand-written rules while the error falls; here it may follow a schedule, from zero. It reads no example.

    Args:
        scale: w_0, above zero. May follow a schedule.
        layers: paths of modules whose weights are penalised, with all inside them; auto takes every linear, convolutional, attention and recurrent layer.

    Raises:
        RecipeError: a scale that is not above zero, an empty list of layers.
        MismatchError: a layer without weights.

    Example:
        {kind: sparsity.weight_elimination, scale: 0.1, layers: [head], weight: {kind: linear, start: 0.0, end: 0.0001}}
    """

    def __init__(self, *, scale: Number = 1.0, layers: Layers = "auto") -> None:
        super().__init__(layers)
        check_number("scale", scale, positive=True)
        self.scale = scale

    def penalty(self, layer: nn.Module, weight: Tensor) -> Tensor:
        return weight_elimination_loss(weight, scale=self.now(self.scale))
