"""Correlation congruence: the kernel between each two examples.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv:1904.01802, sec. 3.2 and 3.3.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.core.schedule import check_number
from limbeck.objectives._layered import Layers
from limbeck.objectives._options import check_choice

from ._geometry import flat, unit_gram
from ._relation import Relation

__all__ = ["CC", "cc_loss"]


def cc_loss(student: Tensor, teacher: Tensor, *, kernel: Literal["gaussian", "bilinear"] = "gaussian", gamma: float = 0.4, order: int = 2) -> Tensor:
    """Return ||C_T - C_S||_F^2 / N^2, C the kernel between each two rows of unit length.

    `gaussian` is exp(-gamma ||x - y||^2) = e^(-2 gamma) e^(2 gamma x.y), its second factor expanded to `order` (Peng et al. 2019, sec. 3.3):
    e^(-2 gamma) sum_p (2 gamma)^p / p! (x.y)^p, p = 0 to `order`; `bilinear` is x.y. Features `[N, ...]`, of any width each, give a scalar.

    Raises:
        RecipeError: gamma of zero or less, an order below one.
        MismatchError: other numbers of rows.

    >>> import torch
    >>> cc_loss(torch.eye(2), torch.ones(2, 3), kernel="bilinear")
    tensor(0.5000)
    """
    _check(gamma, order)
    ours, theirs = flat(student, teacher)
    ours, theirs = unit_gram(ours), unit_gram(theirs)
    if kernel == "gaussian":
        ours, theirs = _expanded(ours, gamma, order), _expanded(theirs, gamma, order)
    return (theirs - ours).square().sum() / max(len(ours) ** 2, 1)


def _check(gamma: float, order: int) -> None:
    check_number("gamma", gamma, positive=True)
    if order < 1:
        raise RecipeError(f"order is {order}; it must be 1 or more, for order 0 tells nothing of the examples")


def _expanded(cosines: Tensor, gamma: float, order: int) -> Tensor:
    """The Taylor polynomial of exp(2 gamma (cos - 1)) about cos = 0, by Horner's rule."""
    found = torch.full_like(cosines, math.exp(-2 * gamma) * (2 * gamma) ** order / math.factorial(order))
    for power in reversed(range(order)):
        found = found * cosines + math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power)
    return found


class CC(Relation):
    """Match the kernel between each two examples: ||C_T - C_S||_F^2 / N^2, by default a Gaussian kernel of unit features expanded to second order.

    Peng et al. 2019, arXiv:1904.01802, sec. 3.2 and 3.3. The paper first brings both sides to one width by a learnt layer; an N x N kernel needs none, and
    there is none here. The weight of 100 is of the order at which this term meets a cross-entropy; RepDistiller's `correlation` is another loss, the mean of
    inner products of neighbouring examples' differences, and its 0.02 means nothing here.

    Args:
        layers: student's layer -> teacher's layer, such as {pool: pool}, of any shapes; auto takes the vector that the classifier reads.
        kernel: gaussian, or bilinear, the inner product alone.
        gamma: of the Gaussian kernel exp(-gamma ||x - y||^2), above zero.
        order: up to which the Gaussian kernel is expanded, 1 or more.

    Raises:
        RecipeError: another kernel, a gamma of zero or less, an order below one.
        MismatchError: no teacher, or features without an axis beside the examples'.

    Example:
        {kind: relation.cc, layers: {pool: pool}, weight: 100}
    """

    wish = "vector"
    usual = 100.0

    def __init__(self, *, layers: Layers = "auto", kernel: Literal["gaussian", "bilinear"] = "gaussian", gamma: float = 0.4, order: int = 2) -> None:
        super().__init__(layers)
        check_choice(self, "kernel", kernel, ("gaussian", "bilinear"))
        _check(gamma, order)
        self.kernel: Literal["gaussian", "bilinear"] = kernel
        self.gamma, self.order = gamma, order

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cc_loss(student, teacher, kernel=self.kernel, gamma=self.gamma, order=self.order)
