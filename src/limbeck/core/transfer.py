"""A transfer set: on which inputs the student is taught."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .task import Loader, Task

__all__ = ["Transfer"]


class Transfer(ABC):
    """On which inputs the student is taught."""

    @abstractmethod
    def loader(self, task: "Task", **how: Any) -> "Loader":
        """The batches to teach on; `how` is what `Task.loader` takes after the split."""
