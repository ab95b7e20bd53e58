"""Neuron selectivity transfer: where a map's channels fire, as a distribution over channels.

Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219, sec. 3 and 4.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers

from ._maps import check_maps, common, product, smaller, unit

__all__ = ["NST", "nst_loss"]


def nst_loss(student: Tensor, teacher: Tensor, *, degree: int = 2, constant: float = 0.0) -> Tensor:
    """Return the squared maximum mean discrepancy between the channels of two maps, for each example.

    mean k(s_i, s_j) + mean k(t_i, t_j) - 2 mean k(s_i, t_j) over channels, each channel's map flattened and at length one, k(x, y) = (x.y + constant)^degree.
    Maps `[N, D, H, W]` and `[N, D', H', W']` give `[N]`; the larger is averaged down to the smaller. No gradient goes into the teacher.

    Raises:
        MismatchError: features that are no maps of the same examples.

    >>> import torch
    >>> left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> nst_loss(left.reshape(1, 1, 1, 2), right.reshape(1, 1, 1, 2))
    tensor([2.])
    """
    check_maps(student, teacher)
    ours, theirs = (unit(maps.flatten(2)) for maps in smaller(*common(student, teacher)))
    if degree == 1:  # k is linear: the means meet, and the constant cancels
        return (ours.mean(1) - theirs.mean(1)).square().sum(-1)

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (product(one, other) + constant).pow(degree).mean((1, 2))

    return kernel(ours, ours) + kernel(theirs, theirs) - 2 * kernel(ours, theirs)


class NST(Layered):
    """Match how the channels of a map share out its places: the squared maximum mean discrepancy (MMD) of their normalised maps, one number per example.

    Huang and Wang 2017, arXiv:1707.01219: polynomial kernel of degree 2 and constant 0; the paper's total has lambda / 2 times this. Channels need not be as
    many on both sides, and nothing is learnt. Toolkits with this method (RepDistiller) match every stage and weigh it 50.

    Args:
        layers: student's layer -> teacher's layer, such as {layer3: layer3}; auto takes the end of the last stage, as the paper does.
        degree: of the polynomial kernel; 1 is the paper's linear kernel.
        constant: what the polynomial kernel adds to the inner product.

    Raises:
        RecipeError: a degree below one, a constant below zero.
        MismatchError: no teacher, or layers that give no maps.

    Example:
        {kind: feature.nst, layers: {layer2: layer2, layer3: layer3}, weight: 50}
    """

    wish = "last"
    usual: ClassVar[float] = 50.0

    def __init__(self, *, layers: Layers = "auto", degree: int = 2, constant: float = 0.0) -> None:
        super().__init__(layers)
        if degree < 1:
            raise RecipeError(f"NST's degree is {degree}; it must be a whole number of one or more")
        check_number("NST's constant", constant, positive=False)
        self.degree = degree
        self.constant = constant

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (ours, theirs), both in zip(features, self.pairs, strict=True):
            check_maps(ours, theirs, both)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [nst_loss(ours, theirs, degree=self.degree, constant=self.constant) for ours, theirs in self.matched(student, teacher)]
        return torch.stack(losses).sum(0)
