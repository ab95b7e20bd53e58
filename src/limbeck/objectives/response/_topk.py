"""A teacher of whom the k likeliest classes are known, and of the C - k others their mass alone. Shapes: every other axis counts predictions.

The others are one class, of both sides: what is compared is then a coarser choice, exactly. A divergence of it is never above that of whole answers, and equal
for k = C - 1. Leaving the others out instead, and making what is kept sum to one, would teach that they are impossible: Anshumann et al., "Sparse Logit
Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025, arXiv:2503.16870. A teacher that says so has a tail of mass zero.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import TopK
from limbeck.core.schedule import Number
from limbeck.objectives._precision import at_least_float32

__all__ = ["check_temperature", "coarse"]


def check_temperature(objective: nn.Module, temperature: Number, teacher: TopK) -> None:
    """Refuse another temperature than that at which the teacher's likeliest classes were recorded: they do not tell their logits."""
    fixed = isinstance(temperature, (int, float))
    if not fixed or not math.isclose(temperature, teacher.temperature):
        told = f"temperature is {temperature:g}" if fixed else "temperature follows a schedule"
        raise MismatchError(
            f"{type(objective).__name__}'s {told}, and the teacher's answer is {teacher}, valid there alone: take temperature: {teacher.temperature:g}, "
            "or record at another"
        )


def coarse(student_logits: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities `[..., k + 1]` of teacher and student at the teacher's temperature: its k classes, then all others as one.

    Raises:
        MismatchError: another batch, or other classes.
    """
    if student_logits.shape != (*teacher.log_tail.shape, teacher.classes):
        raise MismatchError(
            f"the student's logits are {list(student_logits.shape)} and the teacher's {[*teacher.log_tail.shape, teacher.classes]}: "
            "both must answer the same batch with the same classes"
        )
    log_q = F.log_softmax(at_least_float32(student_logits) / teacher.temperature, -1)
    kept, rest = log_q.gather(-1, teacher.indices), log_q.scatter(-1, teacher.indices, float("-inf"))
    none = (rest == float("-inf")).all(-1, keepdim=True)  # nothing is left: a mass of zero, which has no gradient
    tail = torch.where(none, float("-inf"), torch.where(none, 0.0, rest).logsumexp(-1, keepdim=True))
    log_p = torch.cat([teacher.log_probs, teacher.log_tail.unsqueeze(-1)], -1).detach()
    return at_least_float32(log_p), torch.cat([kept, tail], -1)
