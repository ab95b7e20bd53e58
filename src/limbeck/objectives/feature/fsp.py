"""Flow of solution procedure: how one layer's channels turn into a later one's.

Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning", CVPR 2017, eq. 1 and 2.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice

from ._maps import channel_projectors, check_maps, common, product, smaller

__all__ = ["FSP", "fsp_loss"]


def fsp_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, pool: Literal["max", "mean"] = "max", reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Return the squared distance of two FSP matrices, G_ij = sum_hw a_i b_j / HW, for each example; with `mean` the mean over their elements.

    `student` and `teacher` are each two maps, an earlier layer's a `[N, D, H, W]` and a later one's b `[N, E, H', W']`, G `[D, E]`: the larger map is pooled
    to the smaller, on either side by itself. They give `[N]`. No gradient goes into the teacher.

    Raises:
        MismatchError: features that are no maps of the same examples, or of unequal numbers of channels.

    >>> import torch
    >>> one, two = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    >>> fsp_loss((one, one), (one, two))
    tensor([1.])
    """
    flows: list[Tensor] = []
    for earlier, later in zip(*(common(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)), strict=True):
        check_maps(earlier, later)
        one, other = smaller(earlier, later, largest=pool == "max")
        flows.append(product(one.flatten(2), other.flatten(2)) / (one.shape[2] * one.shape[3]))
    ours, theirs = flows
    if ours.shape != theirs.shape:
        raise MismatchError(
            f"the student's FSP matrices are {list(ours.shape)} and the teacher's {list(theirs.shape)}: "
            "both must see the same examples in as many channels at either layer; project the one's to the other's"
        )
    squares = (ours - theirs).square().flatten(1)
    return squares.sum(-1) if reduction == "sum" else squares.mean(-1)


class FSP(Layered):
    """Match the flow from each layer to the next: ||G_s - G_t||^2, G the inner products of one map's channels with the next map's, one number per example.

    Yim et al. 2017, eq. 2, with equal weights: the sum over consecutive pairs of the matched layers, in the order in which they are given. The paper measures
    from the first to the last layer of each stage ({layer1.0: layer1.0, layer1: layer1} is one such flow) and trains by it alone, as a first stage; the task
    is learnt in a second one. It pools by maxima and needs equal channels; here a 1x1 convolution is learnt on the student's side where they differ.
    RepDistiller pools by averages and takes the mean over G's elements, at weight 50; torchdistill 1.1.5 sums the lengths of G's columns, not their squares.

    Args:
        layers: student's layer -> teacher's layer, two or more, first to last; auto takes the ends of all stages.
        pool: how the larger of two maps meets the smaller: by max, as in the paper, or by mean.
        reduction: sum is the paper's; mean is over the elements of G.

    Raises:
        RecipeError: a single layer, another pool or reduction.
        MismatchError: no teacher, or layers that give no maps.

    Example:
        {kind: feature.fsp, layers: {layer1: layer1, layer2: layer2, layer3: layer3}, reduction: mean, weight: 50}
    """

    usual: ClassVar[float] = 0.02
    """RepDistiller's 50 times a mean, as a sum over 32 x 64 elements."""

    def __init__(self, *, layers: Layers = "auto", pool: Literal["max", "mean"] = "max", reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__(layers)
        check_choice(self, "pool", pool, ("max", "mean"))
        check_choice(self, "reduction", reduction, ("sum", "mean"))
        if layers != "auto" and len(layers) < 2:
            raise RecipeError(f"FSP looks at the flow from one layer to the next and has {', '.join(layers)} alone: name two or more, first to last")
        self.pool: Literal["max", "mean"] = pool
        self.reduction: Literal["sum", "mean"] = reduction
        self.projectors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        if len(features) < 2:
            raise MismatchError(f"FSP looks at the flow from one layer to the next and found {self.pairs[0]} alone: name two or more layers, first to last")
        self.projectors = channel_projectors(features, self.pairs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        met = [(project(ours), theirs) for project, (ours, theirs) in zip(self.projectors, self.matched(student, teacher), strict=True)]
        losses = [fsp_loss((ours, after), (theirs, later), pool=self.pool, reduction=self.reduction) for (ours, theirs), (after, later) in pairwise(met)]
        return torch.stack(losses).sum(0)
