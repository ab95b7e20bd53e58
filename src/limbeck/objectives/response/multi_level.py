"""Align predictions at three levels, each example, the batch and the classes, at several temperatures.

Jin et al., "Multi-Level Logit Distillation", CVPR 2023, sec. 3.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._logits import divergence, prepared, rows
from ._response import Responding

__all__ = ["MultiLevel", "multi_level_loss"]

_TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def multi_level_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = _TEMPERATURES,
    instance: float = 1.0,
    batch: float = 1.0,
    category: float = 1.0,
) -> Tensor:
    """Return sum_T (instance mean_n T^2 KL(p_n || q_n) + batch ||QQ' - PP'||^2 / N + category ||Q'Q - P'P||^2 / C).

    Q, P `[N, C]`: the rows q_n, p_n, softmax of student's and teacher's logits / T; norms are Frobenius'. Logits `[N, C]` give a scalar. A level of weight 0
    is not computed: `category` takes C x C numbers, which a vocabulary has no room for.

    Raises:
        RecipeError: no temperatures, one of zero or less, a weight below zero.
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> sure = torch.tensor([[0.0, -1e9]])
    >>> multi_level_loss(torch.zeros(1, 2), sure, temperatures=[1.0], instance=0.0, category=0.0)  # (1/2 - 1)^2
    tensor(0.2500)
    """
    _check(temperatures, instance, batch, category)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    count, classes = max(student_logits.shape[0], 1), student_logits.shape[1]
    loss = student_logits.flatten()[:0].sum()  # zero, with a graph also where every level is left out
    for temperature in temperatures:
        log_q, log_p = F.log_softmax(student_logits / temperature, -1), F.log_softmax(teacher_logits / temperature, -1)
        if instance:
            loss = loss + divergence(log_p, log_q, factor=instance * temperature**2).sum() / count
        if batch or category:
            q, p = log_q.exp(), log_p.exp()
            if batch:
                loss = loss + (q @ q.mT - p @ p.mT).square().sum() * (batch / count)
            if category:
                loss = loss + (q.mT @ q - p.mT @ p).square().sum() * (category / classes)
    return loss


def _check(temperatures: Sequence[float], instance: Number, batch: Number, category: Number) -> None:
    if not temperatures:
        raise RecipeError("multi_level has no temperatures: give one or more, such as [2, 3, 4, 5, 6]")
    for temperature in temperatures:
        check_number("a temperature", temperature, positive=True)
    for name, number in (("instance", instance), ("batch", batch), ("category", category)):
        check_number(name, number, positive=False)


class MultiLevel(Responding):
    """Align every prediction, how the batch's predictions resemble each other, and how the classes do, summed over several temperatures.

    Jin et al. 2023, CVPR, sec. 3: L_ins + L_batch + L_class. The temperatures are those of the authors' code, whose loss has weight 0.9 beside a
    cross-entropy of weight 0.1. That code also takes two views of each example (a weak and a strong augmentation), gives L_ins its T^2, as here, and
    multiplies the parts of the weak view, means already, by the share of examples (or classes) that the teacher is less sure of than the median: about a
    half. None of that is here.

    Args:
        temperatures: the temperatures that are summed over, above zero.
        instance: the weight of the divergence of each prediction. May follow a schedule.
        batch: the weight of the N x N matrix of resemblances between examples. May follow a schedule.
        category: the weight of the C x C matrix of resemblances between classes; 0 leaves it out, for a large vocabulary. May follow a schedule.

    Raises:
        RecipeError: no temperatures, one of zero or less, a weight below zero.
        MismatchError: no teacher, other classes than the student's, or answers that are no choice of one class.

    Example:
        {kind: response.multi_level, weight: 9.0}
    """

    batchwise = True
    usual = 9.0

    def __init__(self, *, temperatures: tuple[float, ...] = _TEMPERATURES, instance: Number = 1.0, batch: Number = 1.0, category: Number = 1.0) -> None:
        super().__init__()
        _check(temperatures, instance, batch, category)
        self.temperatures, self.instance, self.batch, self.category = tuple(temperatures), instance, batch, category

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        ours, theirs = rows(student, given(self, teacher))
        levels = {"instance": self.now(self.instance), "batch": self.now(self.batch), "category": self.now(self.category)}
        return multi_level_loss(ours, theirs, temperatures=self.temperatures, **levels)
