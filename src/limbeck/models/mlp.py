"""A multilayer perceptron: linear layers with ReLU and, where asked, dropout."""

import math

from torch import Tensor, nn

from ._arguments import check_classes, check_rate, check_whole

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron on flattened examples.

    In Hinton et al. 2015 (arXiv:1503.02531, sec. 3) two hidden layers of 1200 units with dropout teach two of 800 without.
    Stage ends: `layer1` ... `layerK [N, widths[k]]`, `head [N, C]`.

    Args:
        widths: units of each hidden layer, from the input on; an empty list gives a linear classifier.
        dropout: share of hidden units dropped in training; 0 puts no dropout layer.
        input_dropout: share of inputs dropped in training; 0 puts no dropout layer.

    Raises:
        RecipeError: a width below one, or a rate outside [0, 1).
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, widths: tuple[int, ...] = (256,), dropout: float = 0.0, input_dropout: float = 0.0) -> None:
        super().__init__()
        check_classes("MLP", classes)
        check_rate("dropout", dropout)
        check_rate("input_dropout", input_dropout)
        self.flatten = nn.Flatten()
        if input_dropout:
            self.input_dropout = nn.Dropout(input_dropout)
        units = math.prod(in_shape)
        for index, width in enumerate(widths, 1):
            check_whole("a width of MLP", width)
            dropped = [nn.Dropout(dropout)] if dropout else []
            self.add_module(f"layer{index}", nn.Sequential(nn.Linear(units, width), nn.ReLU(), *dropped))
            units = width
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, ...]` to logits `[N, C]`."""
        for layer in self.children():
            x = layer(x)
        return x
