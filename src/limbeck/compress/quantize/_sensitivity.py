"""Which layers suffer most from 8 bits: each is quantized alone, and the logits say what that cost."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from limbeck.bridges.onnx_runtime import run, session
from limbeck.core.errors import RecipeError

from ._inputs import Inputs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["layers", "most_sensitive", "sensitivities", "sqnr_db"]

_MOVES = frozenset({"Concat", "Expand", "Flatten", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move numbers and compute none: what they give has the range of what they took."""


def sqnr_db(reference: Tensor, found: Tensor) -> float | None:
    """Return 10 log10(sum r^2 / sum (r - q)^2), the signal over the quantization noise in decibels; None where there is no noise at all.

    >>> import torch
    >>> sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    20.0
    """
    noise, signal = (reference.double() - found.double()).square().sum().item(), reference.double().square().sum().item()
    if not noise:
        return None
    return 10 * math.log10(signal / noise) if signal else -math.inf


def layers(graph: "GraphProto", quantized: Collection[str]) -> dict[str, list[str]]:
    """Return layer -> its own nodes that compute and are quantized, in the graph's order; a node outside of any layer is one by itself."""
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if node.name in quantized and node.op_type not in _MOVES:
            found.setdefault(node.name.rpartition("/")[0] or node.name, []).append(node.name)
    return found


def sensitivities(
    groups: Mapping[str, Collection[str]], quantize: Callable[[Collection[str]], "ModelProto"], reference: Tensor, inputs: Inputs
) -> list[dict[str, Any]]:
    """Return a row for each layer, the most sensitive first: `layer`, its `nodes`, and `sqnr_db` of the logits when it alone is quantized.

    `quantize(nodes)` gives the model with those nodes alone quantized; `reference [N, C]` is what the float file says of `inputs [N, ...]`.
    """
    rows: list[dict[str, Any]] = []
    for layer, nodes in groups.items():
        found = run(session(quantize(nodes).SerializeToString()), inputs)
        rows.append({"layer": layer, "nodes": list(nodes), "sqnr_db": sqnr_db(reference, found)})
    return sorted(rows, key=lambda row: math.inf if row["sqnr_db"] is None else row["sqnr_db"])


def most_sensitive(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the first `count` rows.

    Raises:
        RecipeError: so many that nothing would be left to quantize.
    """
    if count >= len(rows):
        raise RecipeError(f"float_layers is {count}, and the file has {len(rows)} layers that can be quantized: leave one or more of them")
    return rows[:count]
