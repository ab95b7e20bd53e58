"""Pearson correlation: each channel of the student, standardised over the batch and space, matches the teacher's.

Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS 2022, arXiv:2207.02039, sec. 3.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._projectors import projectors
from limbeck.objectives._shapes import check_alike

__all__ = ["PKD", "pkd_loss"]


def _standard(x: Tensor) -> Tensor:
    """A feature whose channels have mean 0 and variance 1 over all examples and places; one that does not vary gives zeros, and no gradient."""
    over = (0, 1) if x.ndim == 3 else (0, *range(2, x.ndim))
    mean = x.mean(over, keepdim=True)
    x = x - mean
    variance = x.square().mean(over, keepdim=True)
    varies = variance > 1e-12 * mean.detach().square()  # what rounding leaves of a constant is less
    return x * torch.where(varies, torch.where(varies, variance, 1.0).rsqrt(), 0.0)


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of the standardised features: the mean over channels of 1 - r, r Pearson's correlation. A scalar.

    Features `[N, D]`, `[N, T, D]` or `[N, D, H, W]` of one shape; a channel's M values are those of all examples and places. Neither side's scale or offset
    counts. A channel that is constant on one side costs 1/2, on both nothing, and moves nothing.

    Raises:
        MismatchError: features of unequal shapes.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [4.0]])
    >>> round(pkd_loss(3 * x + 5, x).item(), 5), round(pkd_loss(-x, x).item(), 5)
    (0.0, 2.0)
    """
    check_alike(student, teacher)
    gap = _standard(at_least_float32(student)) - _standard(at_least_float32(teacher.detach()))
    return gap.square().sum() / (2 * max(gap.numel(), 1))


class PKD(Layered):
    """Match the shape of a feature and not its scale: 1 - r, r the Pearson correlation of each channel over the batch and all places, mean over channels.

    Cao et al. 2022, arXiv:2207.02039: half the mean squared difference of features standardised per channel, here with the variance of the M = NHW values
    themselves, so that it is 1 - r exactly; the authors' code (MMRazor) divides by M - 1 and adds 1e-6 to the deviation, (M-1)/M of this. It reads a batch
    as a whole. The paper sums over the stages of a feature pyramid (auto: the stages of both models) with weight 6 for two-stage detectors. Features of
    unequal shape meet through a learnt projector, which the paper does not need.

    Args:
        layers: student's layer -> teacher's layer, such as {layer2: layer2}; auto pairs the ends of the stages.

    Raises:
        MismatchError: no teacher, or features that no projector brings together.

    Example:
        {kind: feature.pkd, layers: {layer2: layer2}, weight: 6}
    """

    batchwise = True
    usual = 6.0

    def __init__(self, *, layers: Layers = "auto") -> None:
        super().__init__(layers)
        self.projectors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.projectors = projectors(features, self.pairs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [pkd_loss(project(ours), theirs) for project, (ours, theirs) in zip(self.projectors, self.matched(student, teacher), strict=True)]
        return torch.stack(losses).sum()
