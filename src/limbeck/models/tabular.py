"""A small network for the rows of a table: numbers as waves of learnt lengths, then a multilayer perceptron.

Gorishniy, Rubachev and Babenko, "On embeddings for numerical features in tabular deep learning", NeurIPS 2022, arXiv:2203.05556, sec. 3.3.
Shapes: N rows, F features, the first f of them numbers, k frequencies, d units of a number's embedding, C classes.
"""

import math

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError

from ._arguments import check_classes, check_rate, check_whole

__all__ = ["Tabular"]


class _Waves(nn.Module):
    """What each number becomes: `relu(A_i [sin(2 pi c_i x_i), cos(2 pi c_i x_i)] + b_i)`, `x [N, f]` to `[N, f d]`; each number has its own c, A and b."""

    def __init__(self, numbers: int, frequencies: int, units: int, scale: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(numbers, frequencies) * scale)
        self.weight = nn.Parameter(torch.empty(numbers, 2 * frequencies, units).uniform_(-1, 1) / math.sqrt(2 * frequencies))
        self.bias = nn.Parameter(torch.zeros(numbers, 1, units))

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x.t()[:, :, None] * self.frequency[:, None]  # [f, N, k]
        waves = torch.baddbmm(self.bias, torch.cat([angle.sin(), angle.cos()], -1), self.weight)  # [f, N, d]
        return waves.relu().transpose(0, 1).flatten(1)


class Tabular(nn.Module):
    """A multilayer perceptron whose numbers come as waves of learnt lengths beside the features themselves.

    A plain perceptron is smooth along each number, where trees are not; waves let a network of the same size follow them. Examples are flattened first. Of
    `tasks.table`, the numeric columns' features are the first. Stage ends: `waves [N, f d]`, `layer1` ... `layerK [N, widths[k]]`, `head [N, C]`.

    Args:
        widths: units of each hidden layer, from the input on.
        numbers: how many features, the first ones, are numbers and come as waves; all where it is not given.
        frequencies: k, the waves of each number.
        units: d, what the waves of a number are brought together to.
        scale: the deviation of the frequencies at the start: larger for a rougher function.
        dropout: share of hidden units dropped in training; 0 puts no dropout layer.

    Raises:
        RecipeError: a size below one, a rate outside [0, 1), or a scale that is not above zero.
        MismatchError: more numbers than there are features.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        classes: int,
        *,
        widths: tuple[int, ...] = (256, 256),
        numbers: int | None = None,
        frequencies: int = 24,
        units: int = 16,
        scale: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_classes("Tabular", classes)
        check_rate("dropout", dropout)
        features = math.prod(in_shape)
        self.numbers = features if numbers is None else numbers
        for name, value in (("numbers", self.numbers), ("frequencies", frequencies), ("units", units)):
            check_whole(name, value)
        if self.numbers > features:
            raise MismatchError(f"numbers is {numbers}, and an example has {features} features: it counts the first of them that are numbers")
        if not (math.isfinite(scale) and scale > 0):
            raise RecipeError(f"scale is {scale:g}; it is a deviation, above zero")
        self.waves = _Waves(self.numbers, frequencies, units, scale)
        size = features + self.numbers * units
        for index, width in enumerate(widths, 1):
            check_whole("a width of Tabular", width)
            dropped = [nn.Dropout(dropout)] if dropout else []
            self.add_module(f"layer{index}", nn.Sequential(nn.Linear(size, width), nn.ReLU(), *dropped))
            size = width
        self.depth = len(widths)
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, ...]` to logits `[N, C]`."""
        flat = x.flatten(1)
        hidden = torch.cat([self.waves(flat[:, : self.numbers]), flat], 1)
        for index in range(1, self.depth + 1):
            hidden = self.get_submodule(f"layer{index}")(hidden)
        return self.head(hidden)
