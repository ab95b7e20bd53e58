"""What every objective of relations does: compare two features of a batch, pair of layers after pair of layers.

Shapes: N examples, `[N, ...]` features.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered

from ._geometry import flat

__all__ = ["Reduction", "Relation"]

Reduction = Literal["mean", "sum"]


class Relation(Layered):
    """An objective of the relations within a batch, which learns nothing: the sum of `compare` over the pairs of layers."""

    batchwise = True

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for ours, theirs in features:
            flat(ours, theirs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return torch.stack([self.compare(ours, theirs) for ours, theirs in self.matched(student, teacher)]).sum()

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair of features `[N, ...]`, a scalar."""
