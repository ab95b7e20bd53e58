"""Learning without forgetting: answer about the old classes as the old self did.

Li and Hoiem, "Learning without Forgetting", ECCV 2016, arXiv:1606.09282, eqs. 2-4.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Objective
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._teacher import given

from ._logits import check_link
from .kd import kd_loss

__all__ = ["LwF", "lwf_loss"]


def lwf_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0, heads: Sequence[int] | None = None) -> Tensor:
    """Return `sum_h T^2 KL(p_h || q_h)` of each prediction, over the teacher's K classes, which are the first K of the student's.

    `p_h` and `q_h` are the softmax of teacher's and student's logits / T over the classes of head h. `heads` counts the classes of each head, together K; one
    head of all K where it is left out. Student `[..., C]`, teacher `[..., K]`, K <= C, give `[...]`.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: heads of more or fewer classes than K, or a student with fewer.

    >>> import torch
    >>> lwf_loss(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[0.0, float("-inf")]]), temperature=1.0)
    tensor([0.6931])
    """
    known = teacher_logits.shape[-1]
    ends = [0]
    for size in [known] if heads is None else heads:
        ends.append(ends[-1] + size)
    if ends[-1] != known or known > student_logits.shape[-1]:
        raise MismatchError(
            f"the heads have {ends[-1]} classes, the teacher {known}, the student {student_logits.shape[-1]}: heads share out the teacher's classes, "
            "which are the first of the student's"
        )
    first, *rest = (kd_loss(student_logits[..., low:high], teacher_logits[..., low:high], temperature=temperature) for low, high in pairwise(ends))
    return sum(rest, start=first)


class LwF(Objective):
    """Answer about the old classes as the old self did, whatever is said of the new ones.

    The teacher is the model before this task; its K classes are the student's first K. `T^2 KL(p || q)`, p and q the softmax of teacher's and student's
    logits / T over those K alone. Where the task is one of a sequence with `heads: multi` (tasks.split), each earlier task has a softmax of its own and the
    losses are added, as in the paper; with `heads: single` one softmax spans all old classes.
    Li and Hoiem 2016, arXiv:1606.09282, eqs. 2-4. Theirs is the cross-entropy, which differs from the divergence by what no student changes, at T = 2
    and without the T^2: their weight of 1 is 0.25 here.

    Args:
        temperature: T, above zero. May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: no teacher, one that knows more classes than the student, or answers that are no choice of one class.

    Example:
        {kind: response.lwf, temperature: 2.0, weight: 1.0}
    """

    def __init__(self, *, temperature: Number = 2.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        self.temperature = temperature
        self._heads: list[int] | None = None

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        old = given(self, teacher)
        for side in (student, old):
            check_link(self, side, "softmax")
        known, now = old.main.classes, student.main.classes
        if known > now:
            raise MismatchError(f"LwF: the teacher knows {known} classes and the student {now}; the old classes must be the first of the student's")
        told = {} if facts is None else facts.preprocess.get("split", {})
        self._heads = _heads(told["tasks"], known) if told.get("heads") == "multi" else None

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return lwf_loss(student.main.logits, given(self, teacher).main.logits, temperature=self.now(self.temperature), heads=self._heads)


def _heads(tasks: Sequence[int], known: int) -> list[int]:
    """The sizes of the tasks, each of so many classes, that a teacher of `known` classes has learnt."""
    heads: list[int] = []
    while sum(heads) < known and len(heads) < len(tasks):
        heads.append(tasks[len(heads)])
    if sum(heads) != known:
        raise MismatchError(f"LwF: the teacher knows {known} classes, which is no number of whole tasks of {', '.join(map(str, tasks))} classes")
    return heads
