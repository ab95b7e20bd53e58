"""Hints: a layer of the student, projected, matches a layer of the teacher.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, eq. 3.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._projectors import projectors
from limbeck.objectives._shapes import check_alike

__all__ = ["FitNet", "fitnet_loss"]


def fitnet_loss(student: Tensor, teacher: Tensor, *, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return half the squared distance of two features for each example, or with `mean` the mean of the squared differences over its elements.

    Features `[N, ...]` of one shape give `[N]`, in float32 at least; no gradient goes into the teacher.

    Raises:
        MismatchError: features of unequal shapes.

    >>> import torch
    >>> fitnet_loss(torch.zeros(1, 4), torch.ones(1, 4)), fitnet_loss(torch.zeros(1, 4), torch.ones(1, 4), reduction="mean")
    (tensor([2.]), tensor([1.]))
    """
    check_alike(student, teacher)
    gap = at_least_float32(student) - teacher.detach()
    squares = gap.square().flatten(1)
    return squares.sum(-1) / 2 if reduction == "sum" else squares.mean(-1)


class FitNet(Layered):
    """Match a layer of the teacher by a projected layer of the student: ||u - r(v)||^2 / 2, u the teacher's feature, v the student's, one number per example.

    Romero et al. 2015, arXiv:1412.6550, eq. 3: the sum over the elements of the feature, here also over the pairs of layers where there are several. Later
    toolkits take the mean over all elements without the half (`reduction: mean`), smaller by half the number of elements: mind the weight. The projector r,
    learnt along with the student, is built only where shapes differ: a 1x1 convolution for maps (after resizing to the teacher's size; the paper's r shrinks
    a map by a larger kernel instead), a linear layer for vectors and sequences. Between equal shapes there is none, where the paper always has one.

    Args:
        layers: student's layer -> teacher's layer, such as {layer2: layer2}; auto takes the end of the middle stage, as the paper does.
        reduction: sum is the paper's half of the sum of squares over a feature's elements; mean is their mean, as in most toolkits.

    Raises:
        RecipeError: another reduction.
        MismatchError: no teacher, or features that no projector brings together.

    Example:
        {kind: feature.fitnet, layers: {layer2: layer2}, reduction: mean, weight: 100}
    """

    wish = "middle"
    usual: ClassVar[float] = 0.006
    """The 100 that later comparisons give a mean of squares, for half a sum over 128 x 16 x 16 elements."""

    def __init__(self, *, layers: Layers = "auto", reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__(layers)
        check_choice(self, "reduction", reduction, ("sum", "mean"))
        self.reduction: Literal["sum", "mean"] = reduction
        self.projectors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.projectors = projectors(features, self.pairs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [
            fitnet_loss(project(ours), theirs, reduction=self.reduction)
            for project, (ours, theirs) in zip(self.projectors, self.matched(student, teacher), strict=True)
        ]
        return torch.stack(losses).sum(0)
