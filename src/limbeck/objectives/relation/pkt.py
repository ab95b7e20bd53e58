"""Probabilistic knowledge transfer: whom each example takes for its neighbours.

Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv:1803.10837, eq. 3-7.
"""

import torch
from torch import Tensor

from limbeck.objectives._layered import Layers
from limbeck.objectives._options import check_choice

from ._geometry import flat, unit_gram
from ._relation import Reduction, Relation

__all__ = ["PKT", "pkt_loss"]

_LEAST = 1e-7
"""Added to every similarity: two opposite features have one of zero, whose logarithm there is not."""


def pkt_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Return the divergence between the two sides' conditional probabilities of neighbours.

    sum_i sum_{j != i} p_{j|i} log(p_{j|i} / q_{j|i}), p_{j|i} = K_ij / sum_{k != i} K_ik with the cosine kernel K = (cos + 1) / 2 of the teacher, q the same of
    the student (Passalis and Tefas 2018, eq. 3, 4, 6 and 7), 1e-7 added to K. Features `[N, ...]`, of any width each, give a scalar in nats: the sum over the
    batch, or with `mean` the mean over its N^2 pairs, smaller by N^2.

    Raises:
        MismatchError: other numbers of rows.

    >>> import torch
    >>> three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> pkt_loss(torch.ones(3, 2), three)  # the two at the ends see one neighbour where the student sees two: 2 log 2
    tensor(1.3863)
    """
    ours, theirs = flat(student, teacher)
    log_p, log_q = _log_neighbours(theirs), _log_neighbours(ours)
    p = log_p.exp().fill_diagonal_(0.0)
    loss = (p * (log_p - log_q)).sum()
    return loss if reduction == "sum" else loss / max(len(ours) ** 2, 1)


def _log_neighbours(x: Tensor) -> Tensor:
    """log p_{j|i} in row i `[N, N]`; what stands on the diagonal is finite and means nothing."""
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    kernel = ((unit_gram(x) + 1) / 2).clamp(0.0, 1.0) + _LEAST
    others = torch.where(itself, 0.0, kernel).sum(1, keepdim=True)
    return torch.where(itself, 1.0, kernel).log() - others.clamp(min=_LEAST).log()


class PKT(Relation):
    """Match whom each example takes for its neighbours: sum_i KL(p_i || q_i), p_i and q_i probabilities over the other examples by cosine similarity.

    Passalis and Tefas 2018, arXiv:1803.10837, eq. 3-7, without the supervised variant. The authors' code, and most toolkits after it, count each example as
    its own neighbour (cosine 1), which the paper does not, and take the mean over N^2 pairs (`reduction: mean`), for which 30000 is the usual weight at batches
    of 64: 7.3 for the sum.

    Args:
        layers: student's layer -> teacher's layer, such as {pool: pool}, of any shapes; auto takes the vector that the classifier reads.
        reduction: sum over the batch, the paper's, or the mean over its N^2 pairs.

    Raises:
        RecipeError: another reduction.
        MismatchError: no teacher, or features without an axis beside the examples'.

    Example:
        {kind: relation.pkt, layers: {pool: pool}, weight: 7.3}
    """

    wish = "vector"
    usual = 7.3

    def __init__(self, *, layers: Layers = "auto", reduction: Reduction = "sum") -> None:
        super().__init__(layers)
        check_choice(self, "reduction", reduction, ("mean", "sum"))
        self.reduction: Reduction = reduction

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt_loss(student, teacher, reduction=self.reduction)
