"""Knowledge review: every layer of the teacher also teaches the student's deeper layers, fused downwards.

Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044, eq. 7 and fig. 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._precision import at_least_float32, place

from ._blocks import Norm, batch_mean

__all__ = ["ReviewKD", "reviewkd_loss"]

_LEVELS = (4, 2, 1)


def reviewkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the hierarchical context loss: mean squared differences of two maps at full size and of their averages over 4x4, 2x2 and 1x1 cells.

    Maps `[N, D, H, W]` of one shape give `[N]`: (L + sum_k 2^-k L_k) / (1 + sum_k 2^-k), L_k the k-th of the pyramid's levels, of those smaller than the map.

    Raises:
        MismatchError: features of unequal shapes, or that are no maps.

    >>> import torch
    >>> reviewkd_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[[3.0, -3.0], [3.0, -3.0]]]]))
    tensor([6.])
    """
    if student.shape != teacher.shape or student.ndim != 4:
        raise MismatchError(
            f"the student's map is {list(student.shape)} and the teacher's {list(teacher.shape)}: both must be [N, D, H, W] of one shape; fuse the student's"
        )
    gap = at_least_float32(student) - teacher.detach()
    loss, share, whole = gap.square().flatten(1).mean(1), 1.0, 1.0
    for cells in _LEVELS:
        if cells < min(gap.shape[2:]):
            share /= 2
            whole += share
            loss = loss + share * F.adaptive_avg_pool2d(gap, cells).square().flatten(1).mean(1)  # averaging is linear
    return loss / whole


class _Fusion(nn.Module):
    """A student's map joins what came from the layer below it, by weights that both give at each place, and leaves in the teacher's shape."""

    def __init__(self, student: Tensor, teacher: Tensor, inner: int, *, deepest: bool) -> None:
        super().__init__()
        where = place(student)
        self.size = tuple(teacher.shape[2:])
        self.inward = nn.Sequential(nn.Conv2d(student.shape[1], inner, 1, bias=False, **where), Norm(inner, **where))
        self.weigh = None if deepest else nn.Sequential(nn.Conv2d(2 * inner, 2, 1, **where), nn.Sigmoid())
        self.outward = nn.Sequential(nn.Conv2d(inner, teacher.shape[1], 3, padding=1, bias=False, **where), Norm(teacher.shape[1], **where))
        for first in (self.inward[0], self.outward[0]):
            nn.init.kaiming_uniform_(first.get_parameter("weight"), a=1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x [N, D, H, W]` and what the deeper layer left `[N, D'', H', W']` to the teacher's shape, and to what is left for the shallower layer."""
        x = self.inward(x.to(self.inward[0].get_parameter("weight").dtype))
        if self.weigh is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            mine, its = self.weigh(torch.cat([x, deeper], 1)).split(1, 1)
            x = x * mine + deeper * its
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="nearest")
        return self.outward(x), x


class ReviewKD(Layered):
    """Review: each layer of the teacher is matched by the student's layer of that depth fused with all its deeper ones, by the hierarchical context loss.

    Chen et al. 2021, arXiv:2104.09044: attention-based fusion (ABF: 1x1 convolution, two weights per place, nearest-neighbour resizing, 3x3 convolution, batch
    norm after each) from the deepest layer to the first, and a loss over a pyramid of averages, mean over a map's
    elements as in the authors' code (and in torchdistill), summed over the layers. The batch norms make it a loss of the whole batch. The authors weigh it 0.6
    to 8 on CIFAR-100, rising over the first 20 epochs (`weight: {kind: linear, end: 5, epochs: 20}`), and 1 on ImageNet. On CIFAR they read the teacher before
    its last ReLUs and add the pooled vector as the deepest layer: name it last (`{layer3: layer3, pool: pool}`).

    Args:
        layers: student's layer -> teacher's layer from the first to the deepest, such as {layer2: layer2, layer3: layer3}; auto pairs the ends of the stages.
        channels: of the fused maps; left alone, the authors' min(512, the deepest map's), which costs more than a small student itself.

    Raises:
        RecipeError: fewer channels than one.
        MismatchError: no teacher, or features that are neither maps nor vectors.

    Example:
        {kind: feature.reviewkd, layers: {layer1: layer1, layer2: layer2, layer3: layer3, pool: pool}, weight: 1.0}
    """

    batchwise = True
    perfect = "no"

    def __init__(self, *, layers: Layers = "auto", channels: int | None = None) -> None:
        super().__init__(layers)
        if channels is not None and channels < 1:
            raise RecipeError(f"channels is {channels}; a fused map has one or more")
        self.channels = channels
        self.fusions = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (ours, theirs), names in zip(features, self.pairs, strict=True):
            if {ours.ndim, theirs.ndim} - {2, 4}:
                raise MismatchError(
                    f"ReviewKD fuses maps [N, D, H, W] and vectors [N, D]: the student's {names[0]!r} gives {list(ours.shape)}, "
                    f"the teacher's {names[1]!r} {list(theirs.shape)}"
                )
        last = len(features) - 1
        inner = self.channels or min(512, features[-1][0].shape[1])
        self.fusions = nn.ModuleList(_Fusion(_map(ours), _map(theirs), inner, deepest=at == last) for at, (ours, theirs) in enumerate(features))

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        total: Tensor | None = None
        deeper: Tensor | None = None
        for fuse, (ours, theirs) in reversed(list(zip(self.fusions, self.matched(student, teacher), strict=True))):
            fused, deeper = fuse(_map(ours), deeper)
            loss = batch_mean(reviewkd_loss(fused, _map(theirs)))
            total = loss if total is None else total + loss
        assert total is not None
        return total


def _map(x: Tensor) -> Tensor:
    """A vector as a map of one place."""
    return x if x.ndim == 4 else x[:, :, None, None]
