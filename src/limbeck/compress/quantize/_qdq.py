"""Graphs in which QuantizeLinear and DequantizeLinear pairs (QDQ) mark what a runtime computes in INT8."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from limbeck.core.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from onnx import GraphProto

__all__ = ["WEIGHTED", "decisions", "float_outputs", "nodes_of"]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply by weights: what is worth quantizing."""

_FLOAT = 1
"""TensorProto.FLOAT."""


def nodes_of(graph: "GraphProto", layers: Sequence[str]) -> list[str]:
    """Return the names of the nodes that `layers` mean: nodes by their whole name, or all nodes of a layer and of the layers in it.

    Raises:
        RecipeError: a layer that the graph has not, with the nearest one.
    """
    names = [node.name for node in graph.node]
    homes = {name: name.rpartition("/")[0] for name in names}
    found: list[str] = []
    for layer in layers:
        meant = [name for name in names if layer in (name, homes[name]) or homes[name].startswith(f"{layer}.")]
        if not meant:
            raise RecipeError(f"keep_float: the graph has no layer {layer!r}{did_you_mean(layer, {home for home in homes.values() if home})}")
        found += [name for name in meant if name not in found]
    return found


def float_outputs(graph: "GraphProto") -> None:
    """Take the last rounding off: where an output of the graph is a number quantized and dequantized again, give the number itself.

    The layer before it keeps its INT8 weights and inputs, and a runtime gives its sums as floats; logits of 8 bits would tie.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        back = makers.get(output.name)
        there = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        source = makers.get(there.input[0]) if there is not None and there.op_type == "QuantizeLinear" else None
        if back is None or there is None or source is None:
            continue
        old = there.input[0]
        graph.node.remove(back)
        graph.node.remove(there)
        for node in graph.node:
            node.input[:] = [output.name if name == old else name for name in node.input]
            node.output[:] = [output.name if name == old else name for name in node.output]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def decisions(before: "GraphProto", after: "GraphProto", able: Collection[str], kept: Collection[str]) -> dict[str, list]:
    """Say of every node of the float graph that gives floats (sizes and indices are left out) what became of it.

    `before` carries the types of its values; `able`: operators that can be quantized; `kept`: nodes that were to stay float.
    Of the answer, `quantized`: nodes that read dequantized numbers, which a runtime fuses into INT8 kernels; `absorbed`: nodes that the rounding before
    them does anyway (a ReLU); `left_float`: the others, each with its operator and why.
    """
    makers = {name: node.op_type for node in after.node for name in node.output}
    later = {node.name: node for node in after.node}
    floats = {value.name for value in (*before.value_info, *before.output) if value.type.tensor_type.elem_type == _FLOAT}
    quantized: list[str] = []
    absorbed: list[str] = []
    left: list[dict[str, str]] = []
    for node in before.node:
        if floats.isdisjoint(node.output):
            continue
        if node.name in kept:
            left.append({"node": node.name, "op": node.op_type, "why": "kept by keep_float"})
        elif node.name not in later:
            absorbed.append(node.name)
        elif node.op_type not in able:
            left.append({"node": node.name, "op": node.op_type, "why": f"onnxruntime has no INT8 kernel for {node.op_type}"})
        else:
            inputs = later[node.name].input[: 2 if node.op_type in WEIGHTED else 1]
            if all(makers.get(name) == "DequantizeLinear" for name in inputs):
                quantized.append(node.name)
            else:
                left.append({"node": node.name, "op": node.op_type, "why": "what it reads is not quantized"})
    return {"quantized": quantized, "absorbed": absorbed, "left_float": left}
