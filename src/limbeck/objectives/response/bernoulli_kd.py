"""Distillation of yes-or-no answers: a divergence for each class, as several labels at once and detectors' scores have it.

Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453, the multi-label logits distillation L_MLD.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._options import check_choice
from limbeck.objectives._teacher import given

from ._logits import divergence, prepared
from ._response import Responding

__all__ = ["BernoulliKD", "bernoulli_kd_loss"]


def bernoulli_kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return T^2 sum_c [p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c))] of each prediction, p = sigmoid(teacher / T), q = sigmoid(student / T).

    Logits `[..., C]` give `[...]`, in nats times T^2; with `mean`, the mean over the C classes. The gradient by the student's logits is T (q - p).

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> bernoulli_kd_loss(torch.zeros(1, 2), torch.tensor([[1e9, -1e9]]))  # 2 log 2
    tensor([1.3863])
    """
    check_number("temperature", temperature, positive=True)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    each = divergence(_both(teacher_logits / temperature), _both(student_logits / temperature), factor=temperature**2)
    return each.sum(-1) if reduction == "sum" else each.mean(-1)


def _both(logits: Tensor) -> Tensor:
    """Log-probabilities of yes and no, `[..., C, 2]`."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)


class BernoulliKD(Responding):
    """Match each yes-or-no answer: T^2 times the sum over classes of the divergence of two coins, one number per prediction.

    Yang et al. 2023, arXiv:2308.06453, L_MLD, at T = 1 and summed over classes; the temperature, and its square as in `response.kd`, are added here. The
    authors' code (L2D) agrees but for probabilities clamped to 1e-8 from 0 and 1; here they are never formed. For a detector's scores `[N, A, C]` a prediction
    is one anchor.

    Args:
        temperature: T, above zero. May follow a schedule.
        reduction: over the classes of a prediction; sum is the paper's, mean does not grow with their number.

    Raises:
        RecipeError: a temperature of zero or less, another reduction.
        MismatchError: no teacher, other classes than the student's, or answers of another kind than yes or no.

    Example:
        {kind: response.bernoulli_kd, temperature: 2.0, weight: 1.0}
    """

    link = "bernoulli"

    def __init__(self, *, temperature: Number = 1.0, reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        check_choice(self, "reduction", reduction, ("sum", "mean"))
        self.temperature = temperature
        self.reduction: Literal["sum", "mean"] = reduction

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        temperature = self.now(self.temperature)
        return bernoulli_kd_loss(student.main.logits, given(self, teacher).main.logits, temperature=temperature, reduction=self.reduction)
