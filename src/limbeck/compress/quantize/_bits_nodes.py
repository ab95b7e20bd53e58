"""Nodes that read weights in groups of few bits: what stands in a weighted node's place.

MatMul -> MatMulNBits and Gather from a table -> GatherBlockQuantized, both onnxruntime's (com.microsoft), which read packed codes; Conv and ConvTranspose ->
DequantizeLinear of groups (opset 21), Reshape and the node itself. Scales of float16 pass through a Cast, which a runtime does once.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ._bits import Groups, grouped, packed
from ._qdq import drop_unread

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["KINDS", "Bits", "array", "flat", "held", "with_groups"]

KINDS = frozenset({"Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"})
"""Operators whose weights can be many."""

_OPSET = 21
"""The first in which DequantizeLinear knows groups and 4 bits."""
_INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations are rounded to 8 bits, group by group, and multiplied as such."""
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Bits:
    """How weights are stored: bits of each, how many share a scale, and what products compute in."""

    bits: int
    block: int
    compute: Literal["float32", "int8"]

    def bytes(self, outputs: int, inner: int, *, whole: bool) -> int:
        """Return the bytes of weights `[outputs, inner]`; a `whole` last group is stored even where it is shorter."""
        groups = -(-inner // self.block)
        codes = groups * self.block if whole else inner
        return outputs * (-(-codes * self.bits // 8) + 2 * groups + -(-groups * self.bits // 8))


def held(node: "NodeProto") -> int:
    """Return which input of a node holds its weights."""
    return 0 if node.op_type == "Gather" else 1


def array(tensor: "TensorProto") -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def flat(node: "NodeProto", values: np.ndarray) -> np.ndarray:
    """Return weights as `[N, K]`: outputs by inputs of a product `[K, N]`; a convolution's by their first axis; a table's rows."""
    return np.ascontiguousarray(values.T) if node.op_type == "MatMul" else values.reshape(len(values), -1)


def with_groups(model: "ModelProto", form: Bits, left: Collection[str]) -> "ModelProto":
    """Return a copy of a model in which every node of `KINDS` with constant weights that is not `left`, by name, reads groups; Gemms are left."""
    from onnx import ModelProto, helper, version_converter

    made = ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    kinds = KINDS - {"Gemm"}
    asked = {node.name for node in made.graph.node if node.op_type in kinds and node.name not in left and node.input[held(node)] in weights}
    version = next(one.version for one in made.opset_import if not one.domain)
    if version < _OPSET and any(node.op_type.startswith("Conv") for node in made.graph.node if node.name in asked):
        made = version_converter.convert_version(made, _OPSET)
    stored: set[str] = set()
    nodes = [
        new for node in made.graph.node for new in (_written(node, weights[node.input[held(node)]], made.graph, form, stored) if node.name in asked else [node])
    ]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    drop_unread(made.graph)
    if any(node.domain == _MICROSOFT for node in nodes) and not any(one.domain == _MICROSOFT for one in made.opset_import):
        made.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return made


def _written(node: "NodeProto", weight: "TensorProto", graph: "GraphProto", form: Bits, stored: set[str]) -> "list[NodeProto]":
    """Return the nodes in a weighted node's place; its groups are added to the graph, once for all nodes that read the same weights in the same way."""
    from onnx import TensorProto, helper

    values = array(weight)
    way = {"MatMul": "product", "Gather": "table"}.get(node.op_type, "kernel")
    name = f"{weight.name}.{way}{form.bits}"
    read, made = [f"{name}.{part}" for part in ("codes", "scales", "zeros")], []
    if name not in stored:
        stored.add(name)
        groups = grouped(flat(node, values), form.bits, form.block)
        graph.initializer.extend({"product": _product, "table": _table, "kernel": _kernel}[way](name, groups, form.bits, values.shape))
        if groups.scales.dtype == np.float16:
            made.append(helper.make_node("Cast", [f"{name}.scales16"], [f"{name}.scales"], name=f"{name}/Cast", to=TensorProto.FLOAT))
        if way == "kernel":
            made += [
                helper.make_node("DequantizeLinear", read, [f"{name}.flat"], name=f"{name}/DequantizeLinear", axis=1, block_size=form.block),
                helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name], name=f"{name}/Reshape"),
            ]
    common = {"bits": form.bits, "block_size": form.block}
    if way == "product":
        common |= {"K": values.shape[0], "N": values.shape[1], **({"accuracy_level": _INT8_ACTIVATIONS} if form.compute == "int8" else {})}
        return [*made, _node("MatMulNBits", [node.input[0], *read], node, common)]
    if way == "table":
        read.insert(1, node.input[1])
        return [*made, _node("GatherBlockQuantized", read, node, {"gather_axis": 0, "quantize_axis": 1, **common})]
    node.input[1] = name
    return [*made, node]


def _node(kind: str, read: list[str], node: "NodeProto", numbers: dict[str, int]) -> "NodeProto":
    """Return onnxruntime's node `kind` that gives what `node` gave, under its name."""
    from onnx import helper

    made = helper.make_node(kind, read, list(node.output), name=node.name, domain=_MICROSOFT)
    made.attribute.extend(helper.make_attribute(key, value) for key, value in numbers.items())
    return made


def _product(name: str, groups: Groups, bits: int, _: tuple[int, ...]) -> "list[TensorProto]":
    """Return weights as MatMulNBits reads them: `codes [N, G, B]` packed in bytes, scales and zero points flat, those of an output in whole bytes."""
    return _named(name, groups, packed(groups.codes, bits), packed(groups.zeros, bits).reshape(-1), groups.scales.reshape(-1))


def _table(name: str, groups: Groups, bits: int, _: tuple[int, ...]) -> "list[TensorProto]":
    """Return weights as GatherBlockQuantized reads them: rows of codes and of zero points, packed in bytes."""
    return _named(name, groups, packed(_codes(groups), bits), packed(groups.zeros, bits), groups.scales)


def _kernel(name: str, groups: Groups, bits: int, shape: tuple[int, ...]) -> "list[TensorProto]":
    """Return a convolution's weights as DequantizeLinear reads them: tensors of unsigned integers of so many bits."""
    from onnx import TensorProto, helper, numpy_helper

    kind = {8: TensorProto.UINT8, 4: TensorProto.UINT4}[bits]
    coded = {"codes": _codes(groups), "zeros": groups.zeros}
    return [
        *(helper.make_tensor(f"{name}.{part}", kind, one.shape, packed(one.reshape(-1), bits).tobytes(), raw=True) for part, one in coded.items()),
        numpy_helper.from_array(groups.scales, _scales(name, groups)),
        numpy_helper.from_array(np.array(shape, np.int64), f"{name}.shape"),
    ]


def _codes(groups: Groups) -> np.ndarray:
    """Return the codes `[N, K]`, without what fills the last group."""
    return groups.codes.reshape(len(groups.codes), -1)[:, : groups.inner]


def _named(name: str, groups: Groups, codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> "list[TensorProto]":
    from onnx import numpy_helper

    parts = {f"{name}.codes": codes, f"{name}.zeros": zeros, _scales(name, groups): scales}
    return [numpy_helper.from_array(part, key) for key, part in parts.items()]


def _scales(name: str, groups: Groups) -> str:
    return f"{name}.scales16" if groups.scales.dtype == np.float16 else f"{name}.scales"
