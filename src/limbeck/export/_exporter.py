"""From a trained module to a file that runs without PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

__all__ = ["Exporter"]


class Exporter(ABC):
    """Write a module as a file in an exchange format."""

    file: str
    """The file's name in its artifact."""

    @abstractmethod
    def export(self, model: nn.Module, example: Tensor | Mapping[str, Tensor], path: Path) -> None:
        """Write `model` to `path`; the batch dimension of `example [N, ...]` stays free.

        A model of several inputs is told by a mapping: the first is given by position, the others by their names.
        """
