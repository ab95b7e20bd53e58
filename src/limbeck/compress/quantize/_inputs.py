"""Real inputs of a file: one tensor, or several by name, counted, cut and fed alike. Shapes: N examples."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Inputs", "count", "cut", "fed", "pieces", "tensors"]

Inputs = Tensor | Mapping[str, Tensor]
"""`[N, ...]`, of a file of one input; or each input's, by its name."""


def tensors(inputs: Inputs) -> list[Tensor]:
    """Return the inputs alone."""
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values())


def count(inputs: Inputs) -> int:
    """Return N."""
    return len(tensors(inputs)[0])


def cut(inputs: Inputs, rows: slice | Tensor) -> Inputs:
    """Return some examples."""
    return inputs[rows] if isinstance(inputs, Tensor) else {name: value[rows] for name, value in inputs.items()}


def pieces(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Give all examples, `size` at a time."""
    for start in range(0, count(inputs), size):
        yield cut(inputs, slice(start, start + size))


def fed(opened: "InferenceSession", inputs: Inputs) -> dict[str, np.ndarray]:
    """Return the inputs as onnxruntime takes them."""
    given = {opened.get_inputs()[0].name: inputs} if isinstance(inputs, Tensor) else inputs
    return {name: value.numpy() for name, value in given.items()}
