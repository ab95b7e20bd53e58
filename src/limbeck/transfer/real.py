"""The task's own training inputs."""

from typing import Any

from limbeck.core.task import Loader, Task
from limbeck.core.transfer import Transfer


class Real(Transfer):
    """The task's own training inputs: the teacher is asked about the data it was trained on."""

    def loader(self, task: Task, **how: Any) -> Loader:
        return task.loader("train", **how)
