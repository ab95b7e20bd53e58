"""A trained language model that reads a text in tokens of its own."""

import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from .frozen import Frozen

__all__ = ["OwnTokens"]

_OWN = "teacher_"


class OwnTokens(Teacher):
    """A trained language model that stands still and reads the student's text in tokens of its own: what `transfer.retokenized` gives beside the student's.

    Its answer has a prediction for each of its own tokens, `[N, U]`, over its own vocabulary, and its mask says which of these are about bytes that count for
    the student: `objectives.sequence.uld` and `sequence.aligned` compare such answers with the student's. `partner` is the task it was trained on.

    Raises:
        MismatchError: batches without its tokens.

    Example:
        {kind: own_tokens, of: teacher}
    """

    def __init__(self, model: nn.Module, partner: Task) -> None:
        super().__init__()
        self.frozen, self._task = Frozen(model), partner

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises RecipeError for a layer that the model has not."""
        self.frozen.prepare(reads, self._task)

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        own = {name.removeprefix(_OWN): value for name, value in batch.items() if name.startswith(_OWN)}
        if "input" not in own:
            raise MismatchError(
                f"the teacher reads tokens of its own, and the batch has {', '.join(batch)}: take transfer: {{kind: retokenized, partner: its task}}, and no "
                "scheme in which the student writes"
            )
        return self.frozen({name: value for name, value in own.items() if name not in ("starts", "ends")})

    def after_step(self, student: nn.Module) -> None:
        """It does not follow."""
