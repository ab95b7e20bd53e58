"""Dynamic INT8: weights in 8 bits, activations in 8 bits whose range is taken anew of every input; for transformers.

Each matrix product with constant weights is computed as S_x S_w (q_x - Z_x) q_w, its scale S_x and zero point Z_x those of the values that came
(Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, eq. 1). Nothing is
calibrated, and everything between the products stays float. The work is onnxruntime's `quantize_dynamic`.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.bridges.onnx import canonical_bytes, load
from limbeck.compress._method import Compressor
from limbeck.core.errors import DataError, MismatchError
from limbeck.core.files import atomic_write, storage

from ._bits_gemm import split_gemms
from ._gate import probe, refuse
from ._inputs import Inputs, count, cut
from ._qdq import WEIGHTED, larger, name_nodes, nodes_of, remarks, stacked, unquantized

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["DynamicInt8"]


class DynamicInt8(Compressor):
    """Quantize the matrix products of an ONNX file to INT8, activations as they come; refused where a probe finds it no faster, as on convolutions.

    Args:
        per_channel: one scale for each output channel of a weight, not one for the whole.
        reduce_range: weights of 7 bits, for x86 processors without VNNI, whose 16-bit sums could saturate.
        keep_float: layers (or nodes) that are not quantized, by name, such as head.
        convolutions: convolutions too, which onnxruntime runs many times slower so; the probe will refuse it.
        force: quantize all the same where the probe refuses.
    """

    def __init__(
        self, *, per_channel: bool = True, reduce_range: bool = False, keep_float: list[str] | None = None, convolutions: bool = False, force: bool = False
    ) -> None:
        self.per_channel, self.reduce_range, self.force = per_channel, reduce_range, force
        self.keep_float = tuple(keep_float or ())
        self.types = ("MatMul", "Conv") if convolutions else ("MatMul",)

    def compress(self, source: Path, path: Path, calibration: Inputs) -> dict[str, Any]:
        """Write the INT8 form of the ONNX file `source` to `path`; of the inputs `[N, ...]` the first is used, to time it; return what was decided.

        Of what is returned, `quantized` and `left_float` say what became of every node with weights, `probe` what was timed before any of it.

        Raises:
            ArtifactError: `source` is missing or damaged.
            DataError: no input.
            MismatchError: what the probe finds no faster, unless forced; a file that is quantized already, or one without a product to quantize.
            RecipeError: `keep_float` names what the file has not.
        """
        from onnx.shape_inference import infer_shapes

        model = load(source)
        unquantized(source, model.graph)
        name_nodes(model.graph)
        if not count(calibration):
            raise DataError("dynamic INT8 needs one input to time the file with, and none was given")
        kept = nodes_of(model.graph, self.keep_float)
        split_gemms(model.graph)
        del model.graph.value_info[:]  # or onnxruntime finds shapes of before beside its own
        model = infer_shapes(model)
        reasons = {node.name: self._why(model.graph, node.name, kept) for node in model.graph.node if node.op_type in WEIGHTED}
        if all(reasons.values()):
            left = "; ".join(sorted({f"{why}" for why in reasons.values()})) or "no node with weights"
            raise MismatchError(f"{source} has nothing to quantize dynamically: {left}")
        found = probe(
            model, cut(calibration, slice(1)), "dynamic INT8", lambda graph, _: self._changed(graph, ("MatMul", "Conv")),
            kept=[*kept, *(stacked(model.graph) if self.per_channel else ())], left=() if "Conv" in self.types else ("Conv",),
        )  # fmt: skip
        notes = refuse(found, source.name, "static_int8 is made for convolutions", force=self.force)
        with storage(path), remarks() as remarked:
            quantized = self._changed(model, self.types, [name for name, why in reasons.items() if why])
        data = canonical_bytes(quantized)
        atomic_write(path, data)
        return {
            "activations": "uint8, ranges of each input",
            "weights": f"int8{', 7 bits used' if self.reduce_range else ''}, one scale per {'channel' if self.per_channel else 'tensor'}",
            "quantized": [name for name, why in reasons.items() if not why],
            "left_float": [{"node": node.name, "op": node.op_type, "why": reasons[node.name]} for node in model.graph.node if reasons.get(node.name)],
            "notes": [*notes, *dict.fromkeys(remarked), *larger(len(data), source)],
            "probe": [found.told()],
            "source_bytes": source.stat().st_size,
            "file_bytes": len(data),
        }

    def _why(self, graph: "GraphProto", name: str, kept: list[str]) -> str:
        """Return why a node stays float, or nothing where it does not."""
        node = next(one for one in graph.node if one.name == name)
        if name in kept:
            return "kept by keep_float"
        if self.per_channel and name in (found := stacked(graph)):
            return found[name]
        if node.op_type not in self.types:
            return f"{node.op_type} is left float by dynamic INT8"
        return "" if any(tensor.name == node.input[1] for tensor in graph.initializer) else "it multiplies two activations"

    def _changed(self, model: "ModelProto", types: tuple[str, ...], kept: list[str] | None = None) -> "ModelProto":
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata

        prepared = onnx.ModelProto()
        prepared.CopyFrom(model)
        add_pre_process_metadata(prepared)
        with tempfile.TemporaryDirectory(prefix="limbeck.") as folder, remarks():
            start, end = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            onnx.save(prepared, start)
            quantization.quantize_dynamic(
                start, end, op_types_to_quantize=list(types), per_channel=self.per_channel, reduce_range=self.reduce_range,
                weight_type=quantization.QuantType.QInt8, nodes_to_exclude=kept or [],
            )  # fmt: skip
            return onnx.load(end)
