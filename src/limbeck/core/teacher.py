"""A teacher: whoever says what the student should match."""

from abc import ABC, abstractmethod

from torch import nn

from .knowledge import Knowledge, Reads
from .lookup import find
from .objective import Clocked
from .task import Batch, Task

__all__ = ["Teacher", "as_teacher"]


class Teacher(Clocked, ABC):
    """Whoever says what the student should match: a frozen model, several, a store, a server, the student's own past.

    What assembly hands to a teacher's constructor is told by the name of its positional parameter: `model`, the model of one stage; `models`, those of several;
    `student`, the student itself; `store`, the folder of what a model said once; and `partner`, the transfer set's second task; nothing where there is none. A
    model of its own that moves is a submodule, without a parameter that requires a gradient, so that checkpoints hold it; one that stands still is none.
    """

    reads_student: bool = False
    """Whether what the teacher says depends on what the student says; if not it is asked first, and its activations are gone before the student's come."""
    views: int | None = None
    """How many draws of the augmentation it knows the answers to; None where it can be asked about any."""

    @abstractmethod
    def prepare(self, reads: Reads, task: Task) -> None:
        """Learn what will be read and how a model of this task is asked; raise `MismatchError` for what cannot be given."""

    @abstractmethod
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        """Say what is known of a batch, without a gradient."""

    @abstractmethod
    def after_step(self, student: nn.Module) -> None:
        """Follow the student after an optimizer's step, for teachers that move; a teacher that stands still does nothing."""


def as_teacher(teacher: "nn.Module | Teacher") -> Teacher:
    """Return a teacher as it is, and a bare module as a frozen one."""
    return teacher if isinstance(teacher, Teacher) else find("teachers", "frozen")(teacher)
