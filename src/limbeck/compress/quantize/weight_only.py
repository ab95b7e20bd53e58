"""Weight-only: weights in 8 or 4 bits, group by group, activations as they were; for the bytes.

Each group of `block_size` weights of one output has its own scale and zero point (`_bits`), as in Frantar et al., "GPTQ: Accurate Post-Training Quantization
for Generative Pre-trained Transformers", ICLR 2023, arXiv:2210.17323, sec. 4 ("grouping"), here rounded to the nearest. Matrix products (a Gemm is written as a
product and an addition) and tables that are looked up are computed from the packed codes by onnxruntime's own operators. For convolutions it has none: they are
stored so, and made float again at every run, which costs time and is said in the notes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from limbeck.bridges.onnx import canonical_bytes, load
from limbeck.compress._method import Compressor
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.files import atomic_write, storage

from ._bits import BLOCKS
from ._bits_gemm import split_gemms
from ._bits_nodes import KINDS, Bits, array, flat, held, with_groups
from ._gate import Probe, probe
from ._inputs import Inputs, count, cut
from ._qdq import WEIGHTED, name_nodes, nodes_of, unquantized

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["WeightOnly"]

_FLOAT = 1
"""TensorProto.FLOAT."""


class WeightOnly(Compressor):
    """Store the weights of an ONNX file in groups of 8 or 4 bits; activations stay float.

    Args:
        bits: of a weight, 8 or 4.
        block_size: weights that share a scale and a zero point, 32, 64 or 128; fewer are more exact and take more bytes.
        compute: what matrix products compute in: float32, or int8, which rounds activations to 8 bits as it goes and is faster.
        convolutions: store convolutions so too.
        keep_float: layers (or nodes) whose weights are not quantized, by name, such as head.
        force: write the file even where it is no smaller.
    """

    def __init__(
        self, *, bits: Literal[8, 4] = 4, block_size: Literal[32, 64, 128] = 64, compute: Literal["float32", "int8"] = "float32", convolutions: bool = True,
        keep_float: list[str] | None = None, force: bool = False,
    ) -> None:  # fmt: skip
        for name, given, known in (("bits", bits, (8, 4)), ("block_size", block_size, BLOCKS), ("compute", compute, ("float32", "int8"))):
            if given not in known:
                raise RecipeError(f"{name} must be {' or '.join(map(str, known))}, not {given!r}")
        self.form = Bits(bits, block_size, compute)
        self.convolutions, self.force = convolutions, force
        self.keep_float = tuple(keep_float or ())

    def compress(self, source: Path, path: Path, calibration: Inputs) -> dict[str, Any]:
        """Write the ONNX file `source` with its weights in few bits to `path`; of the inputs `[N, ...]` the first is used, to time it; return what was decided.

        Of what is returned, `quantized` and `left_float` say what became of every node with weights, `probe` what it does to the time.

        Raises:
            ArtifactError: `source` is missing or damaged.
            DataError: no input.
            MismatchError: a file that would not be smaller, unless forced; one that is quantized already, without weights to quantize, or with some not finite.
            RecipeError: `keep_float` names what the file has not.
        """
        model, form = load(source), self.form
        unquantized(source, model.graph)
        name_nodes(model.graph)
        if not count(calibration):
            raise DataError("weight_only needs one input to time the file with, and none was given")
        kept = nodes_of(model.graph, self.keep_float)
        split_gemms(model.graph)
        asked = [node for node in model.graph.node if _weighted(model.graph, node)]
        left = {node.name: why for node in asked if (why := self._why(model.graph, node, kept))}
        quantized = [node for node in asked if node.name not in left]
        if not quantized:
            raise MismatchError(f"{source} has no weights to store in {form.bits} bits: {'; '.join(sorted(set(left.values()))) or 'no node with weights'}")
        data, before = canonical_bytes(with_groups(model, form, left)), source.stat().st_size
        notes = self._sized(len(data), before, source)
        found = self._probed(model, cut(calibration, slice(1)), left, quantized)
        with storage(path):
            atomic_write(path, data)
        return {
            "activations": "float32" if form.compute == "float32" else "float32, rounded to int8 within a matrix product",
            "weights": f"{form.bits} bits, a scale and a zero point for every {form.block} of an output",
            "quantized": [node.name for node in quantized],
            "left_float": [{"node": node.name, "op": node.op_type, "why": left[node.name]} for node in asked if node.name in left],
            "notes": [*notes, *self._told(quantized, found)],
            "probe": [one.told() for one in found],
            "source_bytes": before,
            "file_bytes": len(data),
        }

    def _sized(self, after: int, before: int, source: Path) -> list[str]:
        """Refuse a file that is no smaller; say where one was forced."""
        if after < before:
            return []
        said = f"{source.name} with {self.form.bits}-bit weights takes {after:,} bytes, and the float file {before:,}: its weights are too few"
        if not self.force:
            raise MismatchError(f"{said}; leave it float, or force: true")
        return [f"forced: {said}"]

    def _probed(self, model: "ModelProto", example: Inputs, left: dict[str, str], quantized: "list[NodeProto]") -> list[Probe]:
        if not any(node.op_type in WEIGHTED for node in quantized):
            return []
        form = self.form
        method = f"{form.bits}-bit weights in groups of {form.block}, {form.compute}"
        return [probe(model, example, method, lambda graph, _: with_groups(graph, form, ()), kept=list(left))]

    def _told(self, quantized: "list[NodeProto]", found: list[Probe]) -> list[str]:
        """Say what is stored only, and what it costs in time."""
        notes, bits = [], self.form.bits
        stored = sum(node.op_type.startswith("Conv") for node in quantized)
        if stored:
            notes.append(f"onnxruntime has no kernel for convolutions of {bits}-bit groups: {stored} are stored so, and made float at every run")
        for one in found:
            products = self.form.compute == "float32" and one.rows[0].operator.startswith("MatMul")
            if one.ratio < 1:
                other = "; compute: int8 may be faster" if products else ""
                notes.append(f"predicted to run {one.ratio:.2f} times as fast as the float file, by a probe of one thread{other}")
        return notes

    def _why(self, graph: "GraphProto", node: "NodeProto", kept: list[str]) -> str:
        """Return why a node's weights stay float, or nothing where they do not."""
        weight = next((tensor for tensor in graph.initializer if tensor.name == node.input[held(node)]), None)
        if node.name in kept:
            return "kept by keep_float"
        if weight is None:
            return "it multiplies two activations"
        if node.op_type == "Gemm" or weight.data_type != _FLOAT or (not node.op_type.startswith("Conv") and len(weight.dims) != 2):
            return f"{node.op_type} of weights {list(weight.dims)} has no form of {self.form.bits} bits"
        if node.op_type.startswith("Conv") and not self.convolutions:
            return "convolutions: false"
        values = array(weight)
        if not np.isfinite(values).all():
            raise MismatchError(f"the weights of {node.name} are not all finite: mend the model before it is quantized")
        small = self.form.bytes(*flat(node, values).shape, whole=node.op_type == "MatMul")
        return f"it would take {small:,} bytes, and {values.nbytes:,} in float" if small >= values.nbytes else ""


def _weighted(graph: "GraphProto", node: "NodeProto") -> bool:
    """Whether a node is of those with weights: a Gather where it looks up rows of a constant table of floats."""
    if node.op_type != "Gather":
        return node.op_type in KINDS
    rows = all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
    return rows and any(tensor.name == node.input[0] and tensor.data_type == _FLOAT and len(tensor.dims) == 2 for tensor in graph.initializer)
