"""Variational information distillation: how likely the teacher's feature is, given the student's.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835, sec. 2.2.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import place
from limbeck.objectives._projectors import Projector, projector

from ._maps import common

__all__ = ["VID", "vid_loss"]

_LEAST = 1e-5
_START = 5.0
"""The least variance, and the one to start from: RepDistiller's."""


def vid_loss(mean: Tensor, teacher: Tensor, variance: Tensor, *, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return -log N(teacher; mean, variance) without its constant for each example: sum of (t - mu)^2 / 2 sigma^2 + log sigma, or with `mean` their mean.

    `mean`, what the student's feature predicts, and `teacher` are `[N, D]`, `[N, T, D]` or `[N, D, H, W]` of one shape, `variance [D]` is above zero; they give
    `[N]`. No gradient goes into the teacher.

    Raises:
        MismatchError: features of unequal shapes, or not one variance for each channel.

    >>> import torch
    >>> vid_loss(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 4.0]), reduction="mean")
    tensor([0.8466])
    """
    axis = 1 if mean.ndim == 4 else -1
    if mean.shape != teacher.shape or variance.shape != (mean.shape[axis],):
        raise MismatchError(
            f"the mean is {list(mean.shape)}, the teacher's feature {list(teacher.shape)}, the variance {list(variance.shape)}: "
            "mean and feature must have one shape, with a variance for each channel"
        )
    mean, teacher = common(mean, teacher)
    variance = variance.to(mean.dtype)
    variance = variance.reshape(-1, 1, 1) if mean.ndim == 4 else variance
    terms = ((teacher - mean).square() / (2 * variance) + variance.log() / 2).flatten(1)
    return terms.sum(-1) if reduction == "sum" else terms.mean(-1)


class _Regressor(nn.Module):
    """The mean, three linear maps of the channels with ReLU between, and the variance of each of the teacher's channels, softplus(a) + 1e-5."""

    def __init__(self, ours: Tensor, theirs: Tensor, hidden: float, names: tuple[str, str]) -> None:
        super().__init__()
        fitting = projector(ours, theirs, names=names)
        where, maps = place(ours), theirs.ndim == 4
        have, want = (x.shape[1 if x.ndim == 4 else -1] for x in (ours, theirs))
        within = max(1, round(hidden * want))

        def linear(one: int, other: int) -> nn.Module:
            return nn.Conv2d(one, other, 1, **where) if maps else nn.Linear(one, other, **where)

        self.reshape = Projector(None, None, reshape=None if fitting is None else fitting.reshape)
        self.mean = nn.Sequential(linear(have, within), nn.ReLU(), linear(within, within), nn.ReLU(), linear(within, want))
        self.spread = nn.Parameter(torch.full((want,), math.log(math.expm1(_START - _LEAST)), **where))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(self.reshape(x.to(self.spread.dtype))), F.softplus(self.spread) + _LEAST


class VID(Layered):
    """Predict the teacher's feature from the student's: the negative log-likelihood under a Gaussian around the prediction, one number per example.

    Ahn et al. 2019, arXiv:1904.05835: sum over channels and places of log sigma_c + (t - mu)^2 / 2 sigma_c^2, sigma_c^2 = softplus(a_c) + 1e-5 a parameter per
    channel, mu three 1x1 convolutions (linear layers for vectors and sequences) with twice the teacher's channels inside. Both are learnt along with the
    student; a loss below zero is no mistake. RepDistiller and torchdistill 1.1.5 take the mean over elements (`reduction: mean`) at weight 1 and start, as we
    do, from a variance of 5; RepDistiller has as many channels inside as the teacher's feature (`hidden: 1`). Places that differ
    are met as `feature.fitnet` meets them.

    Args:
        layers: student's layer -> teacher's layer, such as {layer2: layer2}; auto takes the ends of all stages.
        reduction: sum is the paper's sum over a feature's elements; mean is their mean, as in most toolkits.
        hidden: channels between the three maps of the regressor, as a multiple of the teacher's.

    Raises:
        RecipeError: another reduction, or no hidden channels.
        MismatchError: no teacher, or features that cannot be brought together.

    Example:
        {kind: feature.vid, layers: {layer2: layer2, layer3: layer3}, reduction: mean, weight: 1.0}
    """

    perfect = "no"
    usual: ClassVar[float] = 0.0003
    """RepDistiller's 1 times a mean, as a sum over 64 x 8 x 8 elements."""

    def __init__(self, *, layers: Layers = "auto", reduction: Literal["sum", "mean"] = "sum", hidden: float = 2.0) -> None:
        super().__init__(layers)
        check_choice(self, "reduction", reduction, ("sum", "mean"))
        check_number("VID's hidden", hidden, positive=True)
        self.reduction: Literal["sum", "mean"] = reduction
        self.hidden = hidden
        self.regressors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.regressors = nn.ModuleList(_Regressor(*both, self.hidden, names) for both, names in zip(features, self.pairs, strict=True))

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        for regress, (ours, theirs) in zip(self.regressors, self.matched(student, teacher), strict=True):
            mean, variance = regress(ours)
            losses.append(vid_loss(mean, theirs, variance, reduction=self.reduction))
        return torch.stack(losses).sum(0)
