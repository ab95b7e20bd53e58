"""Relational distillation by distances: how far examples lie from each other, in units of the batch's mean distance.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068, eq. 5-7.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.objectives._layered import Layers
from limbeck.objectives._options import check_choice

from ._geometry import centred_gram, flat, squared_distances
from ._relation import Reduction, Relation

__all__ = ["RKDDistance", "rkd_distance_loss"]


def rkd_distance_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the Huber loss (delta 1) between the distances of all pairs of rows, each divided by the mean distance of its own side.

    psi(i, j) = ||x_i - x_j|| / mu, mu the mean over pairs i != j (Park et al. 2019, eq. 5 and 6); features `[N, ...]`, of any width each, give a scalar: the
    mean over all N^2 ordered pairs, or their sum. A side whose rows are all equal has distances zero.

    Raises:
        MismatchError: other numbers of rows.

    >>> import torch
    >>> rkd_distance_loss(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [3.0], [3.0]]), reduction="sum")
    tensor(1.1250)
    """
    ours, theirs = flat(student, teacher)
    loss = F.smooth_l1_loss(_scaled(ours), _scaled(theirs), reduction="sum")
    return (loss if reduction == "sum" else loss / max(len(ours) ** 2, 1)).to(ours.dtype)


def _scaled(x: Tensor) -> Tensor:
    squares = squared_distances(centred_gram(x))
    apart = squares > 0
    distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    mean = distances.sum() / max(len(x) * (len(x) - 1), 1)
    return distances / torch.where(mean > 0, mean, 1.0)


class RKDDistance(Relation):
    """Match the distances between examples: Huber(psi_S(i, j) - psi_T(i, j)) over the pairs of a batch, psi the distance over the batch's mean distance.

    Park et al. 2019, arXiv:1904.05068, eq. 5-7. The paper prints a sum over pairs; its weight, 25 beside a cross-entropy, and the authors' code mean the mean
    over all N^2 ordered pairs, the N pairs of an example with itself (zero) counted. That is the default; `reduction: sum` is what is printed, N^2 as large.

    Args:
        layers: student's layer -> teacher's layer, such as {pool: pool}, of any shapes; auto takes the vector that the classifier reads.
        reduction: mean over the ordered pairs of a batch, or their sum.

    Raises:
        RecipeError: another reduction.
        MismatchError: no teacher, or features without an axis beside the examples'.

    Example:
        {kind: relation.rkd_distance, layers: {pool: pool}, weight: 25}
    """

    wish = "vector"
    usual = 25.0

    def __init__(self, *, layers: Layers = "auto", reduction: Reduction = "mean") -> None:
        super().__init__(layers)
        check_choice(self, "reduction", reduction, ("mean", "sum"))
        self.reduction: Reduction = reduction

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd_distance_loss(student, teacher, reduction=self.reduction)
