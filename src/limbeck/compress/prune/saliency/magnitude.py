"""Magnitude: the smallest weights go first.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, arXiv:1506.02626, sec. 3; for filters Li et al., "Pruning
Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710, sec. 3.1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.core.errors import RecipeError

from ._asking import finite, parameters_of

__all__ = ["Magnitude"]


class Magnitude(Saliency):
    """How large a weight is: `|w|^p`; of several together their p-norm, `(sum_k |w_k|^p)^(1/p)`. It reads no data.

    Args:
        p: 1 or 2; single weights are in the same order by both.

    Raises:
        RecipeError: another p.
    """

    def __init__(self, *, p: Literal[1, 2] = 1) -> None:
        if p not in (1, 2):
            raise RecipeError(f"p of magnitude must be 1 or 2, not {p}")
        self.p = p

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        with torch.no_grad():
            return finite({name: weight.detach().abs() ** self.p for name, weight in parameters_of(model, names).items()}, "the magnitude")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1) ** (1 / self.p)
