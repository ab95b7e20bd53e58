"""Similarity-preserving distillation: examples that excite the teacher alike excite the student alike.

Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682, eq. 1-4.
"""

from torch import Tensor
from torch.nn import functional as F

from limbeck.objectives._layered import Layers

from ._geometry import flat, gram
from ._relation import Relation

__all__ = ["SP", "sp_loss"]


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ||G_T - G_S||_F^2 / N^2, G the Gram matrix A A^T of the flattened activations, each of its rows divided by its L2 norm.

    Tung and Mori 2019, eq. 1-4, for one pair of layers. Activations `[N, ...]`, of any shape each, give a scalar.

    Raises:
        MismatchError: other numbers of rows.

    >>> import torch
    >>> sp_loss(torch.eye(2), torch.ones(2, 3))
    tensor(0.2929)
    """
    ours, theirs = flat(student, teacher)
    gap = F.normalize(gram(theirs), dim=1) - F.normalize(gram(ours), dim=1)
    return gap.square().sum() / max(len(ours) ** 2, 1)


class SP(Relation):
    """Match which examples excite a layer alike: ||G_T - G_S||_F^2 / N^2, G the Gram matrix of the batch's activations with rows of unit length.

    Tung and Mori 2019, arXiv:1907.09682, eq. 1-4: summed over pairs of layers; the paper's weight is 3000 beside a cross-entropy, for the last block.

    Args:
        layers: student's layer -> teacher's layer, such as {layer3: layer3}, of any shapes; auto takes the end of the last stage, as the paper does.

    Raises:
        MismatchError: no teacher, or features without an axis beside the examples'.

    Example:
        {kind: relation.sp, layers: {layer3: layer3}, weight: 3000}
    """

    wish = "last"
    usual = 3000.0

    def __init__(self, *, layers: Layers = "auto") -> None:
        super().__init__(layers)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return sp_loss(student, teacher)
