"""Relational distillation by angles: the angle at each example between each two others.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068, eq. 8-10.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limbeck.objectives._layered import Layers
from limbeck.objectives._options import check_choice

from ._geometry import centred_gram, flat, squared_distances
from ._relation import Reduction, Relation

__all__ = ["RKDAngle", "rkd_angle_loss"]

_AT_ONCE = 1 << 17
"""Cosines held at a time: what the loss takes beside its N x N matrices is a few tens of MB, up to batches of 362."""


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the Huber loss (delta 1) between the cosines of the angles that all triplets of rows make.

    psi(i, j, k) = <e_ij, e_kj>, e_ij the unit vector from x_j to x_i (Park et al. 2019, eq. 8), computed from the Gram matrix G of the centred rows as
    (G_ik - G_ij - G_jk + G_jj) / (d_ij d_jk), a few vertices j at a time; 0 where two of the rows that span it are equal. Features `[N, ...]`, of any width
    each, give a scalar: the mean over all N^3 ordered triplets, or their sum.

    Raises:
        MismatchError: other numbers of rows.

    >>> import torch
    >>> right, flat_one = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    >>> round(rkd_angle_loss(right, flat_one, reduction="sum").item(), 4)
    1.1716
    """
    ours, theirs = flat(student, teacher)
    sides = [*_side(ours), *_side(theirs)]
    count = len(ours)
    step = max(1, _AT_ONCE // max(count**2, 1))
    total = ours.new_zeros(())
    for start in range(0, count, step):
        vertices = slice(start, start + step)
        if step >= count:
            total = total + _between(vertices, *sides)
        else:  # computed again on the way back rather than kept
            part = checkpoint(_between, vertices, *sides, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(part, Tensor)
            total = total + part
    total = total.to(ours.dtype)
    return total if reduction == "sum" else total / max(count**3, 1)


def _side(x: Tensor) -> tuple[Tensor, Tensor]:
    """The products `[N, N]` of the centred rows, and one over their distances, 0 where there is none."""
    products = centred_gram(x)
    squares = squared_distances(products)
    apart = squares > 0
    return products, torch.where(apart, torch.where(apart, squares, 1.0).rsqrt(), 0.0)


def _between(vertices: slice, products: Tensor, inverse: Tensor, their_products: Tensor, their_inverse: Tensor) -> Tensor:
    return F.smooth_l1_loss(_cosines(vertices, products, inverse), _cosines(vertices, their_products, their_inverse), reduction="sum")


def _cosines(vertices: slice, products: Tensor, inverse: Tensor) -> Tensor:
    """The cosines `[J, N, N]` of the angles at some of the rows."""
    at, near = products[vertices], inverse[vertices]  # [J, N]
    squares = products.diagonal()[vertices]
    found = products - at[:, :, None] - (at - squares[:, None])[:, None, :]
    return found * near[:, :, None] * near[:, None, :]


class RKDAngle(Relation):
    """Match the angles between examples: Huber(psi_S(i, j, k) - psi_T(i, j, k)) over the triplets of a batch, psi the cosine of the angle at j.

    Park et al. 2019, arXiv:1904.05068, eq. 8-10. The paper prints a sum over triplets; its weight, 50 beside a cross-entropy, and the authors' code mean the
    mean over all N^3 ordered triplets, degenerate ones (alike on both sides) counted. That is the default; `reduction: sum` is what is printed.

    Args:
        layers: student's layer -> teacher's layer, such as {pool: pool}, of any shapes; auto takes the vector that the classifier reads.
        reduction: mean over the ordered triplets of a batch, or their sum.

    Raises:
        RecipeError: another reduction.
        MismatchError: no teacher, or features without an axis beside the examples'.

    Example:
        {kind: relation.rkd_angle, layers: {pool: pool}, weight: 50}
    """

    wish = "vector"
    usual = 50.0

    def __init__(self, *, layers: Layers = "auto", reduction: Reduction = "mean") -> None:
        super().__init__(layers)
        check_choice(self, "reduction", reduction, ("mean", "sum"))
        self.reduction: Reduction = reduction

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd_angle_loss(student, teacher, reduction=self.reduction)
