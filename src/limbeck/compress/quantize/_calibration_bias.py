"""Bias correction: what quantization adds to the mean of a channel is taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv:1906.04721, sec. 4.2: E[y~] = E[y] + E[e x], where e is
the error of the weights, so that subtracting the mean error of the output leaves it unbiased. Here the mean error is measured (as in their appendix D), with
the error of the activations in it, layer after layer: a layer is corrected once those before it are.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np

from limbeck.bridges.onnx_runtime import session

from ._calibration import answers, expose
from ._inputs import Inputs, count, pieces
from ._qdq import WEIGHTED

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["channel_means", "correct"]

_BATCH = 32


def channel_means(model: "ModelProto", values: Collection[str], axes: Collection[int], inputs: Inputs) -> list[np.ndarray]:
    """Return the mean of each value over all but its channel axis, `[C]` each, over inputs `[N, ...]`."""
    opened = session(expose(model, values).SerializeToString())
    totals: list[np.ndarray] = []
    for part in pieces(inputs, _BATCH):
        found = [
            np.moveaxis(value.astype(np.float64), axis, -1).reshape(len(part), -1, value.shape[axis]).mean(1).sum(0)
            for value, axis in zip(answers(opened, part), axes, strict=True)
        ]
        totals = [old + new for old, new in zip(totals, found, strict=True)] if totals else found
    return [total / count(inputs) for total in totals]


def correct(
    model: "ModelProto", nodes: Collection[str], quantize: Callable[["ModelProto"], "ModelProto"], inputs: Inputs
) -> tuple["ModelProto", list[str], list[str]]:
    """Return the float model with corrected biases, which `quantize` makes a quantized one of; the nodes that were corrected, and those without a bias's place.

    `nodes`: those that are quantized.
    """
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    weighted = [node for node in made.graph.node if node.op_type in WEIGHTED and node.name in nodes]
    placed = [(node, place) for node in weighted if (place := _place(made.graph, node)) is not None]
    axes = [_axis(node) for node, _ in placed]
    wanted = channel_means(model, [node.output[0] for node, _ in placed], axes, inputs) if placed else []
    for (node, (holder, index)), axis, mean in zip(placed, axes, wanted, strict=True):
        quantized = quantize(made)
        twin = next(one for one in quantized.graph.node if one.name == node.name)
        (now,) = channel_means(quantized, [twin.output[0]], [axis], inputs)
        _add(made.graph, holder, index, (mean - now).astype(np.float32))
    done = [node.name for node, _ in placed]
    return made, done, [node.name for node in weighted if node.name not in done]


def _axis(node: "NodeProto") -> int:
    return 1 if node.op_type.startswith("Conv") else -1


def _place(graph: "GraphProto", node: "NodeProto") -> tuple["NodeProto", int] | None:
    """Return the node and the input of it that hold a weighted node's bias; a matrix product's is in the addition that alone reads it."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if node.input[1] not in constants:
        return None
    if node.op_type != "MatMul":
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        whole = any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute) or (bias is not None and max(bias.dims[:-1], default=1) > 1)
        return None if whole or (bias is None and "".join(node.input[2:3])) else (node, 2)
    readers = [one for one in graph.node if node.output[0] in one.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    index = 1 - list(readers[0].input).index(node.output[0])
    held = constants.get(readers[0].input[index])
    return (readers[0], index) if held is not None and list(held.dims) == [constants[node.input[1]].dims[-1]] else None


def _add(graph: "GraphProto", node: "NodeProto", index: int, delta: np.ndarray) -> None:
    """Add to the bias that is a node's input, which gets a tensor of its own: two layers may have shared one."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    old = numpy_helper.to_array(constants[node.input[index]]) if len(node.input) > index and node.input[index] else np.zeros_like(delta)
    name = f"{node.name}.corrected_bias"
    fresh = numpy_helper.from_array(old.reshape(-1) + delta, name)
    if name in constants:
        constants[name].CopyFrom(fresh)
    else:
        graph.initializer.append(fresh)
    node.input.extend([""] * (index + 1 - len(node.input)))
    node.input[index] = name
