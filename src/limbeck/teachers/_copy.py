"""A copy of a model that answers for a teacher which moves."""

import copy
from typing import Self

import torch
from torch import nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.tap import check_paths
from limbeck.core.task import Batch, Task

__all__ = ["Copy"]


class Copy(nn.Module):
    """A model's deep copy: always in eval mode, no parameter that requires a gradient, in the checkpoint of whoever holds it.

    Raises:
        MismatchError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        try:
            copied = copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            told = " ".join(str(error).split())[:200]
            raise MismatchError(f"the student, {type(model).__name__}, cannot be copied, and this teacher begins as a copy of it: {told}") from None
        self.model = copied.requires_grad_(False).eval()
        self._reads = Reads()
        self._task: Task | None = None

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises RecipeError for a layer that the model has not."""
        check_paths(self.model, reads.features | reads.modules, "teacher")
        self._reads, self._task = reads, task

    @torch.no_grad()
    def forward(self, batch: Batch) -> Knowledge:
        assert self._task is not None, "a teacher is prepared before it is asked"
        return ask(self.model, batch, self._reads, self._task, side="teacher")

    def train(self, mode: bool = True) -> Self:
        """The copy stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self
