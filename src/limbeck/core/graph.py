"""From a trained module to a file that runs without PyTorch, and from one such file to a smaller one."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

__all__ = ["Compressor", "Exporter"]


class Exporter(ABC):
    """Write a module as a file in an exchange format."""

    file: str
    """The file's name in its artifact."""

    @abstractmethod
    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write `model` to `path`; the batch dimension of `example [N, ...]` stays free."""


class Compressor(ABC):
    """Make an exported file smaller or faster."""

    @abstractmethod
    def compress(self, source: Path, path: Path, calibration: Tensor) -> dict[str, Any]:
        """Write the compressed form of the file `source` to `path`, calibrated on real inputs `[N, ...]`; return what was decided, JSON-able."""
