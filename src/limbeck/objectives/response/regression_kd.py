"""Distillation of real numbers: the teacher bounds how far from the truth the student may be, or is matched itself.

Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017, sec. 3.3, the teacher bounded regression loss L_b.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

from ._logits import prepared
from ._response import Responding

__all__ = ["RegressionKD", "regression_kd_loss", "teacher_bounded_loss"]

Distance = Literal["l2", "l1", "smooth_l1"]


def regression_kd_loss(student: Tensor, teacher: Tensor, *, distance: Distance = "l2") -> Tensor:
    """Return the distance of each prediction from the teacher's: the sum over its numbers of (s - t)^2, of |s - t| or of the smooth L1 with its bend at 1.

    Numbers `[..., C]` give `[...]`.

    Raises:
        MismatchError: predictions of unequal shapes.

    >>> import torch
    >>> regression_kd_loss(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([25.])
    """
    student, teacher = prepared(student, teacher)
    return _distance(student, teacher, distance)


def teacher_bounded_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, margin: float = 0.0, distance: Distance = "l2") -> Tensor:
    """Return d(s, y) of each prediction where d(s, y) + margin > d(t, y), and 0 elsewhere; d as in `regression_kd_loss`.

    Numbers `[..., C]` of student, teacher and truth give `[...]`; for C = 1 the truth may lack that axis.

    Raises:
        RecipeError: a margin below zero.
        MismatchError: predictions or labels of unequal shapes.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]])
    >>> teacher_bounded_loss(student, teacher, torch.zeros(2, 1))  # the first is better than its teacher
    tensor([0., 9.])
    """
    check_number("margin", margin, positive=False)
    student, teacher = prepared(student, teacher)
    if student.shape[-1] == 1 and labels.shape == student.shape[:-1]:
        labels = labels.unsqueeze(-1)
    if labels.shape != student.shape:
        raise MismatchError(f"the labels are {list(labels.shape)} and the predictions {list(student.shape)}: give a true number for each that is predicted")
    truth = at_least_float32(labels.detach()).to(student.dtype)
    ours, theirs = _distance(student, truth, distance), _distance(teacher, truth, distance)
    return torch.where(ours + margin <= theirs, 0.0, ours)  # what is not a number is not better


def _distance(x: Tensor, y: Tensor, distance: Distance) -> Tensor:
    if distance == "l2":
        return (x - y).square().sum(-1)
    each = F.l1_loss(x, y, reduction="none") if distance == "l1" else F.smooth_l1_loss(x, y, reduction="none")
    return each.sum(-1)


class RegressionKD(Responding):
    """Let the teacher bound the student's error: ||s - y||^2 where it is not below the teacher's by `margin`, 0 elsewhere, one number per prediction.

    Chen et al. 2017 (NeurIPS), sec. 3.3: 0.5 L_b beside the smooth L1 loss of the labels; a margin of zero is the default here. With `margin: null` it matches
    the teacher's numbers themselves, ||s - t||^2, without labels. A student equal to its teacher pays nothing at margin 0 or null; at a larger margin it pays
    its error. The paper knows only the squared distance.

    Args:
        margin: by how much the student must be better than its teacher to pay nothing, as a distance; null matches the teacher. May follow a schedule.
        distance: over the numbers of a prediction, summed: l2 is the square, l1 the absolute value, smooth_l1 the one within 1, the other beyond.

    Raises:
        RecipeError: a margin below zero, another distance.
        MismatchError: no teacher, no labels for a margin, another number of outputs than the student's, or answers that are not real numbers.

    Example:
        {kind: response.regression_kd, margin: null, distance: smooth_l1, weight: 0.5}
    """

    link = "identity"
    usual = 0.5

    def __init__(self, *, margin: Number | None = 0.0, distance: Distance = "l2") -> None:
        super().__init__()
        if margin is not None:
            check_number("margin", margin, positive=False)
        check_choice(self, "distance", distance, get_args(Distance))
        self.margin = margin
        self.distance: Distance = distance
        self.labelled = margin is not None

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        ours, theirs = student.main.logits, given(self, teacher).main.logits
        if self.margin is None:
            return regression_kd_loss(ours, theirs, distance=self.distance)
        return teacher_bounded_loss(ours, theirs, batch["label"], margin=self.now(self.margin), distance=self.distance)
