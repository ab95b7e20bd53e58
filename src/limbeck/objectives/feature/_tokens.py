"""Hidden states: vectors `[N, D]`, or sequences of T of them, `[N, T, D]`."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._projectors import projectors

__all__ = ["States", "check_states", "over_tokens"]


class States(Layered):
    """An objective of hidden states: the sum of `compare` over the pairs of layers, the student's states projected where widths differ."""

    def __init__(self, layers: Layers, mask: str | None) -> None:
        super().__init__(layers)
        self.mask = mask
        self.projectors = nn.ModuleList()

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, teacher, fields=frozenset() if self.mask is None else frozenset({self.mask}))

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        read = [self.read(*both) for both in features]
        for (ours, theirs), both in zip(read, self.pairs, strict=True):
            check_states(ours, theirs, both)
        self.projectors = projectors(read, self.pairs)

    def read(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Hook: return what is compared of two features."""
        return student, teacher

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        mask = None if self.mask is None else batch[self.mask]
        read = (self.read(*both) for both in self.matched(student, teacher))
        losses = [self.compare(project(ours), theirs, mask) for project, (ours, theirs) in zip(self.projectors, read, strict=True)]
        return torch.stack(losses).sum(0)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of one pair of states of one width, `[N]`; of the tokens where `mask [N, T]` is not 0, if it is given."""


def check_states(student: Tensor, teacher: Tensor, names: tuple[str, str] | None = None) -> None:
    """Refuse features that are no hidden states of the same tokens, and with no `names` (of layers, before they are projected) also those of unequal widths."""
    ours, theirs = ("'s states", "'s states") if names is None else (f"'s {names[0]!r}", f"'s {names[1]!r}")
    told = f"the student{ours} are {list(student.shape)} and the teacher{theirs} {list(teacher.shape)}"
    if student.ndim not in (2, 3) or student.ndim != teacher.ndim:
        raise MismatchError(f"{told}: name two layers that both give vectors [N, D] or sequences [N, T, D]")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise MismatchError(f"{told}: states are matched one by one; name layers that see the same tokens of the same examples, in sequences of one length")
    if names is None and student.shape != teacher.shape:
        raise MismatchError(f"{told}: project the one to the other's width first")


def over_tokens(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of `losses [N, T]` over tokens, `[N]`, those alone where `mask [N, T]` is not 0; an example without any has 0. `[N]` stays as it is.

    Raises:
        MismatchError: a mask of another shape.
    """
    if mask is None:
        return losses if losses.ndim == 1 else losses.mean(-1)
    if mask.shape != losses.shape:
        raise MismatchError(f"the mask is {list(mask.shape)} and there is a state for each of {list(losses.shape)}: give one number per token, [N, T]")
    real = mask != 0
    return torch.where(real, losses, 0.0).sum(-1) / real.sum(-1).clamp(min=1)
