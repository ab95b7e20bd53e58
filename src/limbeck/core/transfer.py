"""A transfer set: on which inputs the student is taught."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Unpack

from torch import nn

from .task import How, Loader, Task

__all__ = ["Transfer"]


class Transfer(ABC):
    """On which inputs the student is taught.

    A constructor with a positional parameter `source` is handed the opened artifact of the stage that the recipe names by `of`; one with `writer`, that stage's
    model, and with `folder` where to keep what it writes; one with `partner`, the second task that it names by `partner`.
    """

    @abstractmethod
    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        """The batches to teach on; `how` is what `Task.loader` takes after the split."""

    def leave(self, folder: Path, task: Task, model: nn.Module) -> None:  # noqa: B027
        """Put into the trained model's artifact what a later stage may draw from: a memory of examples. Nothing, for most."""
