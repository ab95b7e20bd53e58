"""A trained model that stands still."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.tap import check_paths
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher


class Frozen(Teacher):
    """A trained model that stands still: always in eval mode, no dropout, no gradient.

    The model moves between devices with the teacher, but is no submodule of it: it is in nobody's `parameters()`, in no checkpoint,
    and out of reach of `train()`.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Args:
        input: the field of a batch that the teacher is asked about; `paired` is a transfer set's other modality.
    """

    def __init__(self, model: nn.Module, *, input: str = "input") -> None:
        super().__init__()
        self._model = (model,)
        self.input = input
        self._reads = Reads()
        self._task: Task | None = None

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises RecipeError for a layer that the model has not."""
        check_paths(self.model, reads.features | reads.modules, "teacher")
        self._reads, self._task = reads, task
        self.model.eval()  # every layer, also where the model itself says that it is

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        assert self._task is not None, "a teacher is prepared before it is asked"
        if self.model.training:
            self.model.eval()
        if self.input != "input":
            if self.input not in batch:
                raise MismatchError(
                    f"the teacher is asked about the field {self.input!r} and the batch has {', '.join(batch)}: "
                    "take a transfer set that gives it, such as {kind: paired, partner: ...}"
                )
            batch = {**batch, "input": batch[self.input]}
        return ask(self.model, batch, self._reads, self._task, side="teacher")

    def after_step(self, student: nn.Module) -> None:
        """A frozen teacher does not follow."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)
