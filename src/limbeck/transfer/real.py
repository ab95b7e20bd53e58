"""The task's own training inputs."""

from typing import Unpack

from limbeck.core.task import How, Loader, Task
from limbeck.core.transfer import Transfer


class Real(Transfer):
    """The task's own training inputs: the teacher is asked about the data it was trained on."""

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        return task.loader("train", **how)
