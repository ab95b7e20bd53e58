"""Match the teacher's logits themselves.

Bucila et al., "Model Compression", KDD 2006; Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, arXiv:1312.6184, eq. 1;
as a limit of distillation: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2.1.
"""

from torch import Tensor

from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._logits import prepared
from ._response import Responding

__all__ = ["LogitMatching", "logit_matching_loss"]


def logit_matching_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return sum_c (z_c - v_c)^2 / 2C of each prediction, z the student's logits, v the teacher's.

    Logits `[..., C]` give `[...]`. For logits of zero mean it is the limit of T^2 KL for T to infinity, approached as 1/T; for others that limit sees only
    the differences from the means. Where both sides exclude a class (-inf), the class counts as matched.

    Raises:
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> logit_matching_loss(torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, -3.0]]))
    tensor([2.])
    """
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    gap = (student_logits - teacher_logits).masked_fill_(student_logits == teacher_logits, 0.0)
    return gap.square().sum(-1) / (2 * gap.shape[-1])


class LogitMatching(Responding):
    """Match the logits: half the mean over classes of (z - v)^2, z the student's logits, v the teacher's, one number per prediction.

    For logits of zero mean this is the limit of `response.kd` at high temperature, gradient (z - v) / C (Hinton et al. 2015, sec. 2.1, times the T^2). A plain
    mean squared error is twice as large; half the sum over classes of Ba and Caruana 2014 (eq. 1) is C times as large: scale the weight to repeat those.
    It takes answers of any kind: logits of classes, of yes-or-no answers, real numbers.

    Raises:
        MismatchError: no teacher, or answers of another size or kind than the student's.

    Example:
        {kind: response.logit_matching, weight: 1.0}
    """

    link = None

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return logit_matching_loss(student.main.logits, given(self, teacher).main.logits)
