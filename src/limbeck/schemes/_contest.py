"""What it takes to play a contest fairly: only the player whose phase it is learns, and the student's other state stays."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch

__all__ = ["LastSaid", "still", "unmoved"]

Said = tuple[Knowledge, Knowledge | None]


@contextmanager
def still(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let what is computed in the block send no gradient to these parameters."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def unmoved(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers back when the block ends: running statistics count a batch once, in the student's own phase."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in before:
                    value.copy_(before[name])


class LastSaid:
    """What student and teacher said of the last batch, kept while neither batch nor student has changed: an opponent's rounds ask each of them once."""

    def __init__(self) -> None:
        self._said: Said | None = None
        self._batch: dict[str, Tensor] = {}
        self._versions: list[int] = []

    def keep(self, batch: Batch, student: nn.Module, said: Said) -> None:
        """Keep it until another batch is kept or it is dropped."""
        self.drop()
        if not any(value.is_inference() for value in batch.values()):  # these count no versions
            self._batch = dict(batch)
            self._said, self._versions = said, self._count(student)

    def recall(self, batch: Batch, student: nn.Module) -> Said | None:
        """Return what was said of this very batch by this very student, None where it would have to be asked."""
        same = batch.keys() == self._batch.keys() and all(value is self._batch[name] for name, value in batch.items())
        return self._said if same and self._said is not None and self._versions == self._count(student) else None

    def drop(self) -> None:
        """Forget it."""
        self._said, self._batch, self._versions = None, {}, []

    def _count(self, student: nn.Module) -> list[int]:
        """How often each tensor of the batch and each parameter was written to, and the student's mode."""
        return [int(student.training), *(value._version for value in self._batch.values()), *(one._version for one in student.parameters())]
