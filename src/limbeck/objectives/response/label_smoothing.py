"""A teacher that knows nothing but that nothing is certain: cross-entropy with labels mixed with the uniform distribution.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, arXiv:1512.00567, sec. 7.
"""

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Objective
from limbeck.core.schedule import Decay, Number, check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._precision import at_least_float32

from ._logits import check_link
from ._target import target, where_labelled

__all__ = ["LabelSmoothing", "label_smoothing_loss"]


def label_smoothing_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Return -(1 - eps) log q_y - eps mean_c log q_c of each prediction, q = softmax(logits), eps the smoothing.

    Logits `[..., C]` and labels `[...]` give `[...]`, in nats. A label that is no class gives what is not a number, for a mask to leave out.

    Raises:
        RecipeError: a smoothing below zero or above one.
        MismatchError: labels that are not one class number for each prediction.

    >>> import torch
    >>> label_smoothing_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([0.6931])
    """
    _check(smoothing)
    logits = at_least_float32(logits)
    index, valid = target(labels, logits)
    log_q = F.log_softmax(logits, -1)
    return where_labelled((smoothing - 1) * log_q.gather(-1, index).squeeze(-1) - smoothing * log_q.mean(-1), valid)


def _check(smoothing: Number) -> None:
    check_number("smoothing", smoothing, positive=False)
    highest = smoothing if isinstance(smoothing, (int, float)) else smoothing.start if isinstance(smoothing, Decay) else max(smoothing.start, smoothing.end)
    if highest > 1:
        raise RecipeError(f"smoothing is {highest:g}; it is the share of the uniform distribution in the target, from 0 to 1")


class LabelSmoothing(Objective):
    """Cross-entropy with softened labels: -(1 - eps) log q_y - eps times the mean over classes of log q_c, one number per prediction.

    Szegedy et al. 2016, arXiv:1512.00567, sec. 7, with their eps = 0.1; PyTorch's `cross_entropy(label_smoothing=eps)` is the same. It asks no teacher, and
    stands in the place of `supervised`, not beside it.

    Args:
        smoothing: eps, from 0, the plain cross-entropy, to 1. May follow a schedule.

    Raises:
        RecipeError: a smoothing below zero or above one.
        MismatchError: no labels, or answers that are no choice of one class.

    Example:
        {kind: response.label_smoothing, smoothing: 0.1, weight: 1.0}
    """

    perfect = "no"

    def __init__(self, *, smoothing: Number = 0.1) -> None:
        super().__init__()
        _check(smoothing)
        self.smoothing = smoothing

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None, labels=True)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        check_link(self, student, "softmax")
        if facts is not None and not facts.labelled:
            raise MismatchError("LabelSmoothing needs labels and the data carry none: leave it out, or use labelled data")

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return label_smoothing_loss(student.main.logits, batch["label"], smoothing=self.now(self.smoothing))
