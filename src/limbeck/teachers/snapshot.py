"""The student as it was: when the stage began, or at the end of an earlier epoch.

Li and Hoiem, "Learning without Forgetting", ECCV 2016, arXiv:1606.09282: the network as it was before the new task.
"""

import math

import torch
from torch import Tensor, nn

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._copy import Copy

__all__ = ["Snapshot"]


class Snapshot(Teacher):
    """The student as it was when the stage began, or as it was at the end of the last whole `every` epochs.

    With `init:` of an earlier stage and without `every` it is the student of the previous task or generation, as in learning without forgetting (Li and Hoiem
    2016, arXiv:1606.09282). With `every: 1` it is the last epoch's student, which teaches in PS-KD (Kim et al. 2021, arXiv:2006.12000).

    The scheme tells it the time; in a loop of one's own call `kd.at(epoch, epochs)` before each epoch.

    Args:
        every: epochs after which it is taken anew; never where it is left out.

    Raises:
        RecipeError: `every` below one.
        MismatchError: a student that cannot be copied.

    Example:
        {kind: snapshot, every: 1}
    """

    def __init__(self, student: nn.Module, *, every: int | None = None) -> None:
        super().__init__()
        if every is not None and every < 1:
            raise RecipeError(f"every is {every}; it must be a whole number of epochs, 1 or more, or be left out")
        self.every = every
        self.past = Copy(student)
        self._student = (student,)
        self._taken = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._taken)

    def set_extra_state(self, state: Tensor) -> None:
        self._taken = int(state)

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises RecipeError for a layer that the student has not."""
        self.past.prepare(reads, task)

    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        due = 0 if self.every is None else math.floor(self.clock.epoch / self.every + 1e-9)
        if due > self._taken:
            self.past.model.load_state_dict(self._student[0].state_dict())
            self._taken = due
        return self.past(batch)

    def after_step(self, student: nn.Module) -> None:
        """A snapshot is taken when an epoch begins, not after a step."""
