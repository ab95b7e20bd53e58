"""The overhaul of feature distillation: features before the ReLU, the teacher's through a margin ReLU, a partial distance.

Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866, sec. 3.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._shapes import check_alike

from ._connector import connectors, mean_over_pairs
from ._maps import common

__all__ = ["OFD", "negative_means", "ofd_loss"]


def negative_means(teacher: Tensor) -> Tensor:
    """Return each channel's margin: the mean of its values below zero, minus three standard deviations where less than one in a thousand is.

    A feature `[N, D, ...]` gives `[D, 1, ...]`, zero or less, in float32 at least. The second case is that of the authors' code.

    >>> import torch
    >>> negative_means(torch.tensor([[-1.0], [-3.0], [8.0]]))
    tensor([-2.])
    """
    values = teacher.detach().movedim(1, 0).flatten(1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    below = values < 0
    mean = torch.where(below, values, 0.0).sum(1) / below.sum(1).clamp(min=1)
    margin = torch.where(below.sum(1) > 0.001 * values.shape[1], mean, -3 * values.std(1, correction=0))
    return margin.reshape(-1, *[1] * (teacher.ndim - 2))


def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Return the partial squared distance to the teacher's feature t = max(teacher, margin): sum of (s - t)^2 but where s <= t <= 0, for each example.

    Features before the ReLU, `[N, D, ...]` of one shape, and `margin` `[D, 1, ...]`, zero or less, give `[N]`; no gradient goes into the teacher.

    Raises:
        MismatchError: features of unequal shapes.

    >>> import torch
    >>> ofd_loss(torch.tensor([[-5.0, 1.0, 1.0]]), torch.tensor([[-1.0, -2.0, 3.0]]), torch.tensor([-0.5]))
    tensor([6.2500])
    """
    check_alike(student, teacher, how="connect")
    student, teacher = common(student, teacher)
    with torch.no_grad():  # the nearest point that costs nothing: a square's gradient by it is none, and the maps are gone through less often
        target = torch.maximum(teacher, margin.to(teacher.dtype))
        aim = torch.where((student <= target) & (target <= 0), student, target)
    return (student - aim).square().flatten(1).sum(-1)


class _Margin(nn.Module):
    """The margins of a teacher's layer: a buffer, saved and moved with the objective."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)


class OFD(Layered):
    """Match what the teacher's layers give before the ReLU, where it matters: a scalar, the mean over examples of the partial squared distance.

    Heo et al. 2019, arXiv:1904.01866: the teacher's feature passes max(t, m), m its channel's mean response below zero, and a student below a response that is
    not above zero costs nothing. Margins are the means over the batch that binds the objective (the paper allows that, or the closed form from the batch norm
    before), and stay as they are. Layers must be read before their ReLU: the batch norm's path, or the ReLU's input, `layer1.act:in`; what is never below zero
    is refused. Where shapes differ a connector, 1x1 convolution and batch norm, is learnt on the student's side (the paper has one always); by its batch norm
    examples meet, hence the scalar. The authors' code halves each stage's weight against the next (`decay: 0.5`), as mdistiller does.

    Args:
        layers: student's layer -> teacher's layer, such as {layer1.act:in: layer1.act:in}, first to last; auto takes the ends of all stages, before
            their last ReLU where that is a module of such a name.
        decay: what a pair of layers weighs beside the pair after it.

    Raises:
        RecipeError: a decay that is not above zero.
        MismatchError: no teacher, features after a ReLU, or such as no connector brings together.

    Example:
        {kind: feature.ofd, layers: {layer1: layer1, layer2: layer2, layer3: layer3}, decay: 0.5, weight: 0.001}
    """

    batchwise = True
    wish = "signed"
    usual: ClassVar[float] = 0.001

    def __init__(self, *, layers: Layers = "auto", decay: float = 1.0) -> None:
        super().__init__(layers)
        check_number("OFD's decay", decay, positive=True)
        self.decay = decay
        self.connectors = nn.ModuleList()
        self.margins = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.connectors = connectors("OFD", features, self.pairs)
        self.margins = nn.ModuleList(_Margin(negative_means(theirs).to(ours.device)) for ours, theirs in features)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        for connect, margin, (ours, theirs) in zip(self.connectors, self.margins, self.matched(student, teacher), strict=True):
            assert isinstance(margin, _Margin)
            losses.append(ofd_loss(connect(ours), theirs, margin.values))
        return mean_over_pairs(losses, self.decay)
