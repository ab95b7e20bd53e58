"""Activation boundaries: on which side of zero each neuron lies.

Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019, arXiv:1811.03233, eq. 5 and 6.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._shapes import check_alike

from ._connector import connectors, mean_over_pairs
from ._maps import common

__all__ = ["AB", "ab_loss"]


def ab_loss(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Return the sum over neurons of relu(margin - s)^2 where the teacher's t is above zero, of relu(margin + s)^2 where it is not, for each example.

    Features before the ReLU, `[N, ...]` of one shape, give `[N]`; no gradient goes into the teacher.

    Raises:
        MismatchError: features of unequal shapes.

    >>> import torch
    >>> ab_loss(torch.tensor([[0.5, 0.5, 3.0, -3.0]]), torch.tensor([[1.0, -1.0, 0.1, -0.1]]))
    tensor([2.5000])
    """
    check_alike(student, teacher, how="connect")
    student, teacher = common(student, teacher)
    with torch.no_grad():  # the nearest point that costs nothing: a square's gradient by it is none, and the maps are gone through less often
        aim = torch.where(teacher > 0, student.clamp(min=margin), student.clamp(max=-margin))
        unsound = 0 * teacher.flatten(1).sum(-1)  # what is not a number in the teacher must not pass for one
    return (student - aim).square().flatten(1).sum(-1) + unsound


class AB(Layered):
    """Match the side of zero on which each neuron lies before its ReLU, with a margin: a scalar, the mean over examples of a sum over neurons.

    Heo et al. 2019, arXiv:1811.03233, eq. 6. It is meant as a first stage by itself; the task is learnt in a second one. Layers must be read before their ReLU:
    the batch norm's path, or the ReLU's input, `layer1.act:in`; what is never below zero is refused. Where shapes differ a connector, 1x1 convolution and batch
    norm, is learnt on the student's side; by its batch norm examples meet, hence the scalar. Neurons inside the margin cost something even in a perfect
    student. The authors' code halves each stage's weight against the next (`decay: 0.5`) and multiplies by 0.003 on CIFAR-10; torchdistill 1.1.5 has the
    same sum.

    Args:
        layers: student's layer -> teacher's layer, such as {layer1.act:in: layer1.act:in}, first to last; auto takes the ends of all stages, before
            their last ReLU where that is a module of such a name.
        margin: how far from zero a neuron must lie, mu in the paper. May follow a schedule.
        decay: what a pair of layers weighs beside the pair after it.

    Raises:
        RecipeError: a margin or decay that is not above zero.
        MismatchError: no teacher, features after a ReLU, or such as no connector brings together.

    Example:
        {kind: feature.ab, layers: {layer1: layer1, layer2: layer2, layer3: layer3}, weight: 0.003}
    """

    batchwise = True
    perfect = "no"
    wish = "signed"
    usual: ClassVar[float] = 0.003

    def __init__(self, *, layers: Layers = "auto", margin: Number = 1.0, decay: float = 1.0) -> None:
        super().__init__(layers)
        check_number("AB's margin", margin, positive=True)
        check_number("AB's decay", decay, positive=True)
        self.margin = margin
        self.decay = decay
        self.connectors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.connectors = connectors("AB", features, self.pairs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        margin = self.now(self.margin)
        met = zip(self.connectors, self.matched(student, teacher), strict=True)
        return mean_over_pairs([ab_loss(connect(ours), theirs, margin=margin) for connect, (ours, theirs) in met], self.decay)
