"""Decoupled distillation: weigh the labelled class and the others apart.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679, eq. 7.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._logits import divergence, prepared
from ._response import Responding
from ._target import others, target, where_labelled

__all__ = ["DKD", "dkd_loss"]


def dkd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD) of each prediction.

    TCKD = KL(b^T || b^S), b = (p_y, 1 - p_y), p the softmax of logits / T; NCKD = KL(p^T || p^S) among the classes other than y, each p made to sum to one
    there. Logits `[..., C]` and labels `[...]` give `[...]`, in nats times T^2; with one class there is nothing to tell apart, and the loss is zero. A label
    that is no class gives what is not a number, for a mask to leave out. KL(p^T || p^S) = TCKD + (1 - p_y^T) NCKD.

    Raises:
        RecipeError: a temperature of zero or less, a weight below zero.
        MismatchError: logits of unequal shapes, labels that are not one class number for each prediction.

    >>> import torch
    >>> dkd_loss(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -1e9]]), torch.tensor([0]), temperature=1.0, alpha=0.0, beta=1.0)  # KL of (1, 0) and (1/2, 1/2)
    tensor([0.6931])
    """
    check_number("temperature", temperature, positive=True)
    check_number("alpha", alpha, positive=False)
    check_number("beta", beta, positive=False)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    index, valid = target(labels, student_logits)
    if student_logits.shape[-1] < 2:
        return where_labelled((student_logits * 0).sum(-1), valid)
    log_q, log_q_rest = _decoupled(student_logits / temperature, index)
    log_p, log_p_rest = _decoupled(teacher_logits / temperature, index)
    loss = divergence(log_p, log_q, factor=alpha * temperature**2) + divergence(log_p_rest, log_q_rest, factor=beta * temperature**2)
    return where_labelled(loss, valid)


def _decoupled(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the labelled class and of all others together `[..., 2]`, and of the others among themselves `[..., C]`."""
    rest, total = others(logits, index)
    return F.log_softmax(torch.cat([logits.gather(-1, index), total], -1), -1), rest


class DKD(Responding):
    """Decouple what the teacher says of the labelled class from what it says of the others: T^2 (alpha TCKD + beta NCKD), one number per prediction.

    Zhao et al. 2022, arXiv:2203.08679, eq. 7, beside a cross-entropy of weight 1. Where alpha is 1 and beta is 1 - p_y of the teacher, it is `response.kd`.
    The paper raises it linearly over the first 20 epochs: that is a schedule of its weight, `weight: {kind: linear, epochs: 20}`. Beta fits the pair: 8 for
    ResNet32x4 and ResNet8x4 on CIFAR-100 at T = 4, 0.5 on ImageNet at T = 1. The authors' code masks the label by subtracting 1000 from its logit / T, which
    leaks where logits are as large; here it is left out.

    Args:
        temperature: T, above zero. May follow a schedule.
        alpha: the weight of the labelled class against all others together. May follow a schedule.
        beta: the weight of the others among themselves. May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less, a weight below zero.
        MismatchError: no teacher, no labels, other classes than the student's, or answers that are no choice of one class.

    Example:
        {kind: response.dkd, temperature: 4.0, alpha: 1.0, beta: 8.0, weight: {kind: linear, epochs: 20}}
    """

    labelled = True

    def __init__(self, *, temperature: Number = 4.0, alpha: Number = 1.0, beta: Number = 8.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        check_number("alpha", alpha, positive=False)
        check_number("beta", beta, positive=False)
        self.temperature, self.alpha, self.beta = temperature, alpha, beta

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        temperature, alpha, beta = self.now(self.temperature), self.now(self.alpha), self.now(self.beta)
        return dkd_loss(student.main.logits, given(self, teacher).main.logits, batch["label"], temperature=temperature, alpha=alpha, beta=beta)
