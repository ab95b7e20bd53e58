"""Attention transfer by gradients: the student's loss is as sensitive to each input as the teacher's.

Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention Transfer", ICLR 2017,
arXiv:1612.03928, sec. 3.2, eq. 3 and 4.

Shapes: N examples; `...` the shape of one input.
"""

from typing import Literal

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

__all__ = ["GradientAT", "gradient_at_loss"]


def gradient_at_loss(student: Tensor, teacher: Tensor, *, distance: Literal["norm", "square"] = "norm") -> Tensor:
    """Return ||J_s - J_t||_2 for each example, J the gradient of the loss by the input; `square` gives its square.

    Gradients `[N, ...]` of one shape give `[N]`. Where both are equal the gradient is zero.

    Raises:
        MismatchError: gradients of unequal shapes.

    >>> import torch
    >>> gradient_at_loss(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])), gradient_at_loss(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), distance="square")
    (tensor([5.]), tensor([25.]))
    """
    if student.shape != teacher.shape:
        raise MismatchError(
            f"the gradient by the student's input is {list(student.shape)} and by the teacher's {list(teacher.shape)}: both must read the same batch"
        )
    gap = (at_least_float32(student) - at_least_float32(teacher.detach())).flatten(1)
    return gap.square().sum(1) if distance == "square" else torch.linalg.vector_norm(gap, dim=1)


class GradientAT(Objective):
    """Match what the loss is sensitive to: ||J_s - J_t||_2, J = dL(x)/dx of each model's own supervised loss, one number per example.

    Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 4; their factor beta / 2 belongs to the weight, for which they print no figure. J_s is part of the
    loss, so that its gradient goes through a gradient: the student runs backward twice, the second time through the first, its graph stays in memory, the
    teacher runs backward too, and every layer of the student must be differentiable twice: kernels that are not, such as fused attention, must be turned
    off. A ReLU counts as straight: its second derivative is zero. Batch norm in training mode mixes examples into J_s; the paper's networks had none.

    Args:
        distance: norm is the paper's; square is its square, smooth where the two meet.

    Raises:
        RecipeError: another distance.
        MismatchError: no teacher, no labels, or inputs of different shapes.

    Example:
        {kind: attention.gradient_at, weight: 1.0}
    """

    def __init__(self, *, distance: Literal["norm", "square"] = "norm") -> None:
        super().__init__()
        check_choice(self, "distance", distance, ("norm", "square"))
        self.distance: Literal["norm", "square"] = distance

    @property
    def needs(self) -> Needs:
        reads = Reads(frozenset[str](), input_gradient=True)
        return Needs(student=reads, teacher=reads, labels=True)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        given(self, teacher)
        if facts is not None and not facts.labelled:
            raise MismatchError("gradient_at takes gradients of the supervised loss and the data carry no labels: use attention.at, or labelled data")
        self(student, teacher, {})

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        ours, theirs = student.input_gradient, given(self, teacher).input_gradient
        if ours is None or theirs is None:
            raise MismatchError(f"the {'student' if ours is None else 'teacher'} was not asked for its input's gradient: read it as `needs` says")
        return gradient_at_loss(ours, theirs, distance=self.distance)
