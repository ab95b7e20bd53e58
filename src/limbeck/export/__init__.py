"""From a trained module to a file that runs without PyTorch, and the proof that both compute the same."""

from ._exporter import Exporter
from ._parity import FLOAT, INT8, Parity, Tolerance, parity

__all__ = ["FLOAT", "INT8", "Exporter", "Parity", "Tolerance", "parity"]
