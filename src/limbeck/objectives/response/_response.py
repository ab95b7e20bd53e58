"""Objectives that compare the two sides' answers class by class: what they need, and which answers fit."""

from typing import ClassVar

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Link, Needs, TopK
from limbeck.core.objective import Objective
from limbeck.core.schedule import Number
from limbeck.core.task import Facts, Task
from limbeck.objectives._teacher import given

from ._logits import check_fit
from ._topk import check_temperature

__all__ = ["Responding"]


class Responding(Objective):
    """An objective that reads the main output of student and teacher, and nothing of their layers. A final class adds `forward`."""

    link: ClassVar[Link | None] = "softmax"
    """The kind of answers that it compares; None for any."""
    labelled: bool = False
    """Whether it reads the labels too."""
    topk: ClassVar[bool] = False
    """Whether a teacher's likeliest classes, recorded at the objective's own `temperature`, are enough."""
    temperature: Number

    @property
    def needs(self) -> Needs:
        return Needs(labels=self.labelled)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        check_fit(self, student, teacher, link=self.link, topk=self.topk)
        if isinstance(theirs := given(self, teacher).answer, TopK):
            check_temperature(self, self.temperature, theirs)
        if self.labelled and facts is not None and not facts.labelled:
            raise MismatchError(f"{type(self).__name__} needs labels and the data carry none: use response.kd, or labelled data")
