"""Normalized distillation: the other classes, made to sum to one on both sides, and the labelled class weighed by the teacher.

Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023,
arXiv:2303.13005, the loss L_nkd.
"""

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._logits import prepared
from ._response import Responding
from ._target import others, target, where_labelled

__all__ = ["NKD", "nkd_loss"]


def nkd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 1.0, gamma: float = 1.5) -> Tensor:
    """Return -p_y log q_y - gamma T^2 sum_{c != y} P_c log Q_c of each prediction.

    p, q: softmax of teacher's and student's logits at temperature 1; P, Q: softmax of their logits / T among the classes other than y. Logits `[..., C]` and
    labels `[...]` give `[...]`, in nats; with one class the loss is zero. A label that is no class gives what is not a number, for a mask to leave out.

    Raises:
        RecipeError: a temperature of zero or less, a weight below zero.
        MismatchError: logits of unequal shapes, labels that are not one class number for each prediction.

    >>> import torch
    >>> nkd_loss(torch.zeros(1, 3), torch.tensor([[-1e9, 0.0, 0.0]]), torch.tensor([0]), gamma=1.0)  # p_y = 0, and log 2 among the other two
    tensor([0.6931])
    """
    check_number("temperature", temperature, positive=True)
    check_number("gamma", gamma, positive=False)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    index, valid = target(labels, student_logits)
    p = F.softmax(teacher_logits, -1).gather(-1, index)
    log_q = F.log_softmax(student_logits, -1).gather(-1, index)
    loss = _cross(p, log_q)
    if student_logits.shape[-1] > 1:
        rest = others(teacher_logits / temperature, index)[0].exp()
        loss = loss + _cross(rest * (gamma * temperature**2), others(student_logits / temperature, index)[0])
    return where_labelled(loss, valid)


def _cross(p: Tensor, log_q: Tensor) -> Tensor:
    return -(log_q.masked_fill(p == 0, 0.0) * p).sum(-1)  # 0 log q = 0, also for q = 0


class NKD(Responding):
    """Normalize the classes that are not the label, and match those: -p_y log q_y - gamma T^2 sum_{c != y} P_c log Q_c, one number per prediction.

    Yang et al. 2023, arXiv:2303.13005, L_nkd, beside a cross-entropy of weight 1. It is a cross-entropy, not a divergence: a perfect student pays the
    teacher's entropies, and the labelled class's part leads beyond the teacher, to certainty. The authors' code (cls_KD) agrees, with T = 1, gamma = 1.5 for
    ImageNet, the defaults here.

    Args:
        temperature: T of the classes that are not the label, above zero; the label's is always 1. May follow a schedule.
        gamma: the weight of the classes that are not the label. May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less, a weight below zero.
        MismatchError: no teacher, no labels, other classes than the student's, or answers that are no choice of one class.

    Example:
        {kind: response.nkd, temperature: 1.0, gamma: 1.5, weight: 1.0}
    """

    perfect = "no"
    labelled = True

    def __init__(self, *, temperature: Number = 1.0, gamma: Number = 1.5) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        check_number("gamma", gamma, positive=False)
        self.temperature, self.gamma = temperature, gamma

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        temperature, gamma = self.now(self.temperature), self.now(self.gamma)
        return nkd_loss(student.main.logits, given(self, teacher).main.logits, batch["label"], temperature=temperature, gamma=gamma)
