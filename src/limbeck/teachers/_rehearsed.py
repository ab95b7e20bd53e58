"""A cached teacher before its store is there: the model itself, heard through what a store would keep of it."""

import torch
from torch import nn

from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._budget import stand_in
from ._store_columns import Recording, check_recorded, columns, heads, keys_of, knowledge
from ._tokens import by_token, counters, counting, flattened, spread, where
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
        if by_token(batch) and said.answer.predictions == batch["input"].shape:
            return self._of_tokens(batch, said)
        found, about = columns(said, keys_of(batch, 1)[0], self.recording)
        check_recorded(self._reads, self.recording.told["features"], about["outputs"])
        return knowledge(found.__getitem__, about, found, self._reads, self.recording.keep, batch["id"].device)

    def _of_tokens(self, batch: Batch, said: Knowledge) -> Knowledge:
        chosen = counting(batch)
        at, some = where(batch, chosen, 1), flattened(said, chosen)
        recording = stand_in(some, self.recording)
        found, about = columns(some, at.documents, recording, counters(at).to(chosen.device))
        check_recorded(self._reads, recording.told["features"], about["outputs"])
        head = {name: value.to(chosen.device) for name, value in heads(some, recording.keep).items()}
        return spread(knowledge(found.__getitem__, about, found, self._reads, recording.keep, chosen.device, head), chosen)

    def after_step(self, student: nn.Module) -> None:
        """It does not follow."""
