"""Cross-entropy with the teacher's softened probabilities as targets.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2: the first objective, on the transfer set.
"""

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Knowledge, TopK
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._logits import prepared
from ._response import Responding
from ._topk import check_temperature, coarse

__all__ = ["SoftCrossEntropy", "soft_cross_entropy_loss"]


def soft_cross_entropy_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return -T^2 sum_c p_c log q_c of each prediction, p = softmax(teacher / T), q = softmax(student / T).

    Logits `[..., C]` give `[...]`, in nats times T^2: T^2 KL(p || q) plus T^2 times the entropy of p.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> soft_cross_entropy_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=1.0)
    tensor([0.6931])
    """
    check_number("temperature", temperature, positive=True)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    p = F.softmax(teacher_logits / temperature, -1)
    log_q = F.log_softmax(student_logits / temperature, -1)
    return _cross_entropy(p, log_q, temperature)


def _cross_entropy(p: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    return -(log_q.masked_fill(p == 0, 0.0) * (p * temperature**2)).sum(-1)  # 0 log q = 0, also for q = 0


class SoftCrossEntropy(Responding):
    """Cross-entropy with soft targets: -T^2 sum_c p_c log q_c, p and q the softmax of teacher's and student's logits / T, one number per prediction.

    Hinton et al. 2015, arXiv:1503.02531, sec. 2: the E(x | t) of the transfer set. A perfect student pays the teacher's entropy; its gradient is that of
    `response.kd`, which is zero there. Of a teacher whose k likeliest classes alone are known, at this temperature, all others are one class.

    Args:
        temperature: T, above zero; higher shows more of how the teacher ranks the classes it does not choose. May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: no teacher, other classes than the student's, or answers that are no choice of one class.

    Example:
        {kind: response.soft_cross_entropy, temperature: 4.0, weight: 0.9}
    """

    perfect = "stationary"
    topk = True

    def __init__(self, *, temperature: Number = 4.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        self.temperature = temperature

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        theirs, temperature = given(self, teacher).answer, self.now(self.temperature)
        if isinstance(theirs, TopK):
            check_temperature(self, temperature, theirs)
            log_p, log_q = coarse(student.main.logits, theirs)
            return _cross_entropy(log_p.exp(), log_q, temperature)
        return soft_cross_entropy_loss(student.main.logits, theirs.logits, temperature=temperature)
