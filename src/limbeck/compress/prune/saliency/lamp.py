"""LAMP: magnitude, made comparable between layers.

Lee et al., "Layer-Adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, arXiv:2010.07611, sec. 3.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency

from ._asking import finite, parameters_of

__all__ = ["Lamp", "lamp_scores"]


def lamp_scores(weight: Tensor) -> Tensor:
    """Return each weight's square over the sum of squares of all that are no smaller: weight `[...]` to `[...]`, float64.

    `score(u) = w_u^2 / sum_{v >= u} w_v^2`, indices in ascending order of magnitude; zero for weights of zero. The largest weight of a layer scores 1, so that
    no layer is emptied before every other has one weight left.

    >>> lamp_scores(torch.tensor([1.0, -2.0, 0.0]))
    tensor([0.2000, 1.0000, 0.0000], dtype=torch.float64)
    """
    squares, order = weight.detach().double().flatten().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)
    scores = torch.where(squares == 0, 0.0, squares / rest)
    return torch.empty_like(scores).scatter_(0, order, scores).reshape(weight.shape)


class Lamp(Saliency):
    """The layer-adaptive magnitude score, for a global threshold: `w_u^2 / sum_{v >= u} w_v^2` within the parameter; several together cost their sum.

    Within one layer the order is that of magnitude; the score is what one layer's weights weigh against another's. It reads no data.
    """

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        return finite({name: lamp_scores(weight) for name, weight in parameters_of(model, names).items()}, "the LAMP score")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1)
