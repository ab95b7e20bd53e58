"""Masked generation: the teacher's whole map is generated from a student's map with holes.

Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv:2205.01529, eq. 2 to 5.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32, place
from limbeck.objectives._projectors import projectors

from ._maps import check_maps
from ._mask import kept

__all__ = ["MGD", "mgd_loss"]


def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of a generated map from the teacher's, summed over channels and places, for each example.

    Maps `[N, D, H, W]` of one shape give `[N]`; no gradient goes into the teacher.

    Raises:
        MismatchError: maps of unequal shapes.

    >>> import torch
    >>> mgd_loss(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2))
    tensor([8.])
    """
    if generated.shape != teacher.shape:
        raise MismatchError(f"the generated map is {list(generated.shape)} and the teacher's {list(teacher.shape)}: generate a map of the teacher's shape")
    return (at_least_float32(generated) - teacher.detach()).square().flatten(1).sum(1)


class MGD(Layered):
    """Generate the teacher's map from a masked one of the student: ||G(M * align(s)) - t||^2, summed over the map, one number per example.

    Yang et al. 2022, arXiv:2205.01529, eq. 2 to 5: G is a 3x3 convolution, ReLU and another; align, a 1x1 convolution, is learnt where channels differ. Both
    are dropped after training. The paper's ratio and weight are 0.15 and 7e-5 for classification, 0.65 and 2e-5 for one-stage, 0.45 and 5e-7 for two-stage
    detectors, 0.75 and 2e-5 for segmentation; the authors' classifiers mask whole channels instead of places (`masks: channels`). The sum grows with the map.
    A mask is a function of the example's id and of the whole epochs that have passed, so that it is the same whatever the batch and after a resume; a loop
    of one's own tells the epoch by `scheme.at(epoch, epochs)`, or every epoch has the same masks.

    Args:
        layers: student's layer -> teacher's layer, such as {layer2: layer2}; auto takes the end of the last stage.
        ratio: how much is masked, from zero to below one.
        masks: places masks a place in all channels, as the paper's equations; channels masks a channel in all places.

    Raises:
        RecipeError: a ratio or a kind of mask that cannot be.
        MismatchError: no teacher, batches without ids, or features that are no maps.

    Example:
        {kind: feature.mgd, layers: {layer2: layer2}, weight: 7.0e-5}
    """

    wish = "last"
    perfect = "no"
    usual = 7e-5

    def __init__(self, *, layers: Layers = "auto", ratio: float = 0.15, masks: Literal["places", "channels"] = "places") -> None:
        super().__init__(layers)
        if not 0 <= ratio < 1:
            raise RecipeError(f"ratio is {ratio:g}; it must be zero or more and below one, which would leave nothing to generate from")
        check_choice(self, "masks", masks, ("places", "channels"))
        self.ratio = ratio
        self.masks: Literal["places", "channels"] = masks
        self.projectors = nn.ModuleList()
        self.generators = nn.ModuleList()

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, teacher, ids=True)

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (ours, theirs), names in zip(features, self.pairs, strict=True):
            check_maps(ours, theirs, names)
        self.projectors = projectors(features, self.pairs)
        self.generators = nn.ModuleList(_generator(theirs.shape[1], ours) for ours, theirs in features)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = []
        for layer, (ours, theirs) in enumerate(self.matched(student, teacher)):
            aligned = at_least_float32(self.projectors[layer](ours))
            losses.append(mgd_loss(self.generators[layer](aligned * self._mask(aligned, batch["id"], layer)), theirs))
        return torch.stack(losses).sum(0)

    def _mask(self, x: Tensor, ids: Tensor, layer: int) -> Tensor:
        n, channels, high, wide = x.shape
        over = (1, high, wide) if self.masks == "places" else (channels, 1, 1)
        count = high * wide if self.masks == "places" else channels
        return kept(ids, count, ratio=self.ratio, epoch=int(self.clock.epoch), layer=layer).reshape(n, *over).to(x.dtype)


def _generator(channels: int, student: Tensor) -> nn.Sequential:
    where = place(student)
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, **where), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, **where))
