"""What every task does alike that asks, prices and scores as a plain one does, and differs from it in its data alone."""

from abc import abstractmethod

from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch, Task

__all__ = ["AsPlain"]


class AsPlain(Task):
    """A task with data of its own, for which a plain task reads a batch, asks the model, prices and scores the answer."""

    @abstractmethod
    def plain(self) -> Task:
        """Return the plain task."""

    def batch(self, raw: object) -> Batch:
        return self.plain().batch(raw)

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return self.plain().forward(model, batch)

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return self.plain().loss(knowledge, batch)

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        return self.plain().scores(knowledge, batch)
