"""The task's own loss on the true targets, at temperature 1.

The second term of Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2: cross-entropy with the correct labels.
"""

from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task

from ._held import Held

__all__ = ["Supervised"]


class Supervised(Objective):
    """The task's own loss on the true targets, one number per prediction `[N]`.

    It asks no teacher. For a classification task this is the cross-entropy with the labels; class weights and the like belong to the task.

    Example:
        {kind: supervised, weight: 0.1}
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: Held[Task] | None = None

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None, labels=True)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        if facts is not None and not facts.labelled:
            raise MismatchError("supervised needs labels and the data carry none: leave it out, or use labelled data")
        self._held = Held(task)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        if self._held is None:
            raise MismatchError("supervised was not bound to a task: let a scheme bind it, or call bind first")
        return self._held.value.loss(student, batch)
