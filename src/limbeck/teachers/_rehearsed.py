"""A cached teacher before its store is there: the model itself, heard through what a store would keep of it."""

import torch
from torch import nn

from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._store_columns import Recording, check_recorded, columns, keys_of, knowledge
from .frozen import Frozen

__all__ = ["Rehearsed"]


class Rehearsed(Teacher):
    """A frozen model whose answers are reduced as a store would reduce them, for checks that record nothing."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        super().__init__()
        self.frozen = Frozen(model, input=recording.input)
        self.recording, self.views = recording, recording.views
        self._reads = Reads()

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises MismatchError for what would not be recorded, RecipeError for a layer to record that the model has not."""
        check_recorded(reads, self.recording.told["features"], reads.outputs)
        self.frozen.prepare(self.recording.reads, task)
        self._reads = reads

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        said: Knowledge = self.frozen(batch)
        found, about = columns(said, keys_of(batch, 1)[0], self.recording)
        check_recorded(self._reads, self.recording.told["features"], about["outputs"])
        return knowledge(found.__getitem__, about, found, self._reads, self.recording.keep, batch["id"].device)

    def after_step(self, student: nn.Module) -> None:
        """It does not follow."""
