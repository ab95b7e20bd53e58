"""Inter-channel correlation: which channels of a map go together.

Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021, arXiv:2202.03680, sec. 3.2.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice

from ._maps import channel_projectors, check_maps, common, product, unit

__all__ = ["ICKD", "ickd_loss"]


def ickd_loss(student: Tensor, teacher: Tensor, *, rows: Literal["unit", "raw"] = "unit") -> Tensor:
    """Return the squared distance of two maps' channel-by-channel correlations, for each example.

    G = f f^T `[D, D]`, f a map flattened to `[D, HW]`. With `unit`, rows of G at length one, ||G_s - G_t||^2 / D; with `raw`, ||G_s - G_t||^2 / D^2.
    Maps `[N, D, H, W]` and `[N, D, H', W']` give `[N]`; their sizes may differ. No gradient goes into the teacher.

    Raises:
        MismatchError: features that are no maps of the same examples, or of unequal numbers of channels.

    >>> import torch
    >>> ickd_loss(torch.ones(1, 2, 1, 1), torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1), rows="raw")
    tensor([2.])
    """
    check_maps(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise MismatchError(
            f"the student's map has {student.shape[1]} channels and the teacher's {teacher.shape[1]}: project the one to as many as the other has"
        )
    ours, theirs = (product(maps.flatten(2), maps.flatten(2)) for maps in common(student, teacher))
    channels = ours.shape[1]
    if rows == "unit":
        return (unit(ours) - unit(theirs)).square().sum((1, 2)) / channels
    return (ours - theirs).square().sum((1, 2)) / channels**2


class ICKD(Layered):
    """Match the inner products between a map's channels, G = f f^T: ||G_s - G_t||^2 / D with G's rows at length one, one number per example.

    Liu et al. 2021, arXiv:2202.03680: G holds for any size of map, so none is resized. The default is the authors' code for classification, which the paper's
    weight of 2.5 belongs to; the paper writes ||G_s - G_t||^2 / D^2 without saying that rows are normalised: `rows: raw`. Where the numbers of channels
    differ, a 1x1 convolution on the student's side is learnt; the code has one always, with batch norm, and none is needed between equal ones.

    Args:
        layers: student's layer -> teacher's layer, such as {layer3: layer3}; auto takes the end of the last stage.
        rows: unit has each channel's row of correlations at length one; raw leaves the inner products as they are, which grow with the map.

    Raises:
        RecipeError: another choice of rows.
        MismatchError: no teacher, or layers that give no maps.

    Example:
        {kind: feature.ickd, layers: {layer2: layer2, layer3: layer3}, weight: 2.5}
    """

    wish = "last"
    usual: ClassVar[float] = 2.5

    def __init__(self, *, layers: Layers = "auto", rows: Literal["unit", "raw"] = "unit") -> None:
        super().__init__(layers)
        check_choice(self, "rows", rows, ("unit", "raw"))
        self.rows: Literal["unit", "raw"] = rows
        self.projectors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.projectors = channel_projectors(features, self.pairs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [
            ickd_loss(project(ours), theirs, rows=self.rows) for project, (ours, theirs) in zip(self.projectors, self.matched(student, teacher), strict=True)
        ]
        return torch.stack(losses).sum(0)
