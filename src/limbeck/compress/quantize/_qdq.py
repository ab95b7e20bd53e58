"""Graphs in which QuantizeLinear and DequantizeLinear pairs (QDQ) mark what a runtime computes in INT8."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = [
    "WEIGHTED",
    "Form",
    "able",
    "decisions",
    "drop_unread",
    "float_outputs",
    "insert_qdq",
    "larger",
    "name_nodes",
    "nodes_of",
    "remarks",
    "stacked",
    "unquantized",
]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply by weights: what is worth quantizing."""

_FLOAT = 1
"""TensorProto.FLOAT."""


@dataclass(frozen=True)
class Form:
    """How numbers are stored: the type of activations, one scale per output channel of a weight or one in all, weights of 7 bits or of 8."""

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    reduce_range: bool = False


def able() -> frozenset[str]:
    """Return the operators that onnxruntime quantizes statically."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset({*QDQRegistry, *QLinearOpsRegistry})


def stacked(graph: "GraphProto") -> dict[str, str]:
    """Return the products with constant weights of other than two axes, each with why it stays float where a channel has a scale of its own."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    products = {node.name: shapes[node.input[1]] for node in graph.node if node.op_type == "MatMul" and node.input[1] in shapes}
    return {name: f"onnxruntime runs no scales per channel of weights {shape}" for name, shape in products.items() if len(shape) != 2}


def larger(after: int, source: Path) -> list[str]:
    """Return what there is to say of a file that is no smaller than its source: nothing where it is."""
    before = source.stat().st_size
    said = f"the file takes {after:,} bytes and the float file {before:,}: the nodes that mark 8 bits outweigh the weights"
    return [said] if after >= before else []


def unquantized(path: Path, graph: "GraphProto") -> None:
    """Refuse a file that is quantized already.

    Raises:
        MismatchError: it has a node that reads quantized numbers.
    """
    signs = ("DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "GatherBlockQuantized")
    if any(node.op_type in signs or node.op_type.startswith("QLinear") for node in graph.node):
        raise MismatchError(f"{path} is quantized already: quantize the float file it was made from")


def name_nodes(graph: "GraphProto") -> None:
    """Name, in place, the nodes that have no name, by operator and position: what is decided is told of each by its name."""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"


def insert_qdq(
    model: "ModelProto", ranges: Mapping[str, tuple[float, float]], form: Form, *, kept: Collection[str] = (), only: Collection[str] = (),
    float_ends: bool = True,
) -> tuple["ModelProto", list[str]]:  # fmt: skip
    """Return the quantized form of a model whose shapes are inferred, and what onnxruntime remarked; its outputs stay float where `float_ends`.

    `ranges`: of the activations; `kept`: nodes that stay float; `only`: the nodes that do not, where there are any.
    """
    import numpy as np
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData, save_tensors_data
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    told: dict[str, TensorData | tuple] = {
        name: TensorData(lowest=np.array([low], np.float32), highest=np.array([high], np.float32)) for name, (low, high) in ranges.items()
    }
    kind = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}[form.activations]
    with tempfile.TemporaryDirectory(prefix="limbeck.") as folder, remarks() as notes:
        start, end, measured = (Path(folder, name) for name in ("float.onnx", "int8.onnx", "ranges.json"))
        prepared = onnx.ModelProto()
        prepared.CopyFrom(model)
        add_pre_process_metadata(prepared)  # BatchNorm was folded at export: onnxruntime's own preparation changed no figure
        onnx.save(prepared, start)
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, told), measured)
        quantization.quantize_static(
            start, end, None, quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=sorted(able()), per_channel=form.per_channel,
            reduce_range=form.reduce_range, activation_type=kind, weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=list(only), nodes_to_exclude=list(kept), calibrate_method=CalibrationMethod.MinMax, calibration_cache_path=measured,
        )  # fmt: skip
        made = onnx.load(end)
    if float_ends:
        float_outputs(made.graph)
    return made, list(dict.fromkeys(notes))


@contextlib.contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect what onnxruntime's quantizer warns of on the root logger, and drop the progress it prints."""
    notes: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    handler, root = Collect(logging.WARNING), logging.getLogger()
    root.addHandler(handler)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield notes
    finally:
        root.removeHandler(handler)


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
    drop_unread(graph)


def drop_unread(graph: "GraphProto") -> None:
    """Drop, in place, the constants that nothing reads: no node, none of a branch or a loop's body, and that are no output."""
    read = _read(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _read(graph: "GraphProto") -> set[str]:
    inner = (one for node in graph.node for attribute in node.attribute for one in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs))
    return {name for node in graph.node for name in node.input} | {value.name for value in graph.output}.union(*map(_read, inner))


def decisions(before: "GraphProto", after: "GraphProto", able: Collection[str], kept: Mapping[str, str]) -> dict[str, list]:
    """Say of every node of the float graph that gives floats (sizes and indices are left out) what became of it.

    `before` carries the types of its values; `able`: operators that can be quantized; `kept`: nodes that were to stay float,
    each with why.
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
            left.append({"node": node.name, "op": node.op_type, "why": kept[node.name]})
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
