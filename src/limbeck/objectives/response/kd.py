"""Knowledge distillation: match the teacher's probabilities, softened by a temperature.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2.
"""

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Hidden, Knowledge, TopK
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._answers import compared
from ._logits import divergence, prepared
from ._response import Responding
from ._topk import check_temperature, coarse

__all__ = ["KD", "kd_loss"]


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return T^2 KL(p || q) of each prediction, p = softmax(teacher / T), q = softmax(student / T).

    Logits `[..., C]` give `[...]`, in nats times T^2. The factor keeps the gradient's size when T changes (Hinton et al. 2015, end of sec. 2).

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> kd_loss(torch.zeros(1, 2), torch.tensor([[0.0, float("-inf")]]), temperature=1.0)
    tensor([0.6931])
    """
    check_number("temperature", temperature, positive=True)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    log_p = F.log_softmax(teacher_logits / temperature, -1)
    log_q = F.log_softmax(student_logits / temperature, -1)
    return divergence(log_p, log_q, factor=temperature**2)


class KD(Responding):
    """Match the teacher's softened probabilities: T^2 KL(p || q), p and q the softmax of teacher's and student's logits / T, one number per prediction.

    Hinton et al. 2015, arXiv:1503.02531, sec. 2. Their cross-entropy with soft targets (`response.soft_cross_entropy`) differs from it by the entropy of p,
    which no student changes: the gradients are equal. The paper's total is a weighted mean of this and `supervised`. Of a teacher whose k likeliest classes
    alone are known, at this temperature, all others are one class.

    Args:
        temperature: T, above zero; higher shows more of how the teacher ranks the classes it does not choose. May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: no teacher, other classes than the student's, or answers that are no choice of one class.

    Example:
        {kind: response.kd, temperature: 4.0, weight: 0.9}
    """

    topk = True

    def __init__(self, *, temperature: Number = 4.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        self.temperature = temperature

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        theirs, temperature = given(self, teacher).answer, self.now(self.temperature)
        if isinstance(student.answer, Hidden):
            return compared(student, theirs, temperature=temperature)
        if isinstance(theirs, TopK):
            check_temperature(self, temperature, theirs)
            return divergence(*coarse(student.main.logits, theirs), factor=temperature**2)
        return kd_loss(student.main.logits, theirs.logits, temperature=temperature)  # a teacher's states are multiplied out, as the student's are
