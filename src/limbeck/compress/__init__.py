"""From a model to a smaller one."""

from ._method import Bench, Compensating, Compressor, Held, Method, Operated, Packer, Saliency, Surgery
from ._plain import plain

__all__ = ["Bench", "Compensating", "Compressor", "Held", "Method", "Operated", "Packer", "Saliency", "Surgery", "plain"]
