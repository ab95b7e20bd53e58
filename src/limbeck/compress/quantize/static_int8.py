"""Static INT8: weights and activations in 8 bits, their ranges measured beforehand on real inputs.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, eq. 1:
r = S (q - Z). Weights are int8, symmetric (Z = 0), with one scale per output channel; activations uint8 with any Z; biases int32 of scale S_input S_weight.
The work is onnxruntime's `quantize_static`; the file is ONNX in QDQ form. Its entropy calibration is not offered: with as many histogram bins as levels,
which is all that can be asked for, it chooses the range that minmax chooses.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from limbeck.bridges.onnx import canonical_bytes, load
from limbeck.bridges.onnx_runtime import run
from limbeck.compress._method import Compressor
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.files import atomic_write, storage

from ._qdq import WEIGHTED, decisions, float_outputs, nodes_of

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["StaticInt8"]

_METHODS = {"minmax": "MinMax", "percentile": "Percentile"}
_BATCH = 32


class StaticInt8(Compressor):
    """Quantize an ONNX file to INT8 weights and activations; the logits stay float.

    Args:
        calibration: how an activation's range is chosen: minmax (all that was seen) or percentile (99.999 % of what was seen).
        examples: how many calibration inputs are used, spread evenly over those given.
        per_channel: one scale for each output channel of a weight, not one for the whole.
        reduce_range: weights of 7 bits, for x86 processors without VNNI, whose 16-bit sums could saturate.
        keep_float: layers (or nodes) that are not quantized, by name, such as head.
    """

    def __init__(
        self,
        *,
        calibration: Literal["minmax", "percentile"] = "minmax",
        examples: int = 256,
        per_channel: bool = True,
        reduce_range: bool = False,
        keep_float: list[str] | None = None,
    ) -> None:
        if calibration not in _METHODS:
            raise RecipeError(f"calibration must be one of {', '.join(_METHODS)}, not {calibration!r}")
        if examples < 2:
            raise RecipeError(f"examples must be 2 or more, not {examples}: a range is not measured on one input")
        self.calibration = calibration
        self.examples = examples
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self.keep_float = tuple(keep_float or ())

    def compress(self, source: Path, path: Path, calibration: Tensor) -> dict[str, Any]:
        """Write the INT8 form of the ONNX file `source` to `path`, calibrated on inputs `[N, ...]`; return what was decided.

        Of what is returned, `quantized`, `absorbed` and `left_float` say what became of every node, `notes` what onnxruntime had to remark.

        Raises:
            ArtifactError: `source` is missing or damaged.
            DataError: calibration inputs that are too few, all the same, or not finite.
            MismatchError: inputs of another shape or type than the file takes, a file that is quantized already, or one without a layer to quantize.
            RecipeError: `keep_float` names what the file has not.
        """
        from onnx.shape_inference import infer_shapes

        model = infer_shapes(load(source))
        if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
            raise MismatchError(f"{source} is quantized already: quantize the float file it was made from")
        inputs = _chosen(calibration, self.examples)
        if not run(source, inputs).isfinite().all():
            raise DataError(f"{source} answers calibration inputs with numbers that are not finite: mend the model before it is quantized")
        kept = nodes_of(model.graph, self.keep_float)
        if not any(node.op_type in WEIGHTED and node.name not in kept for node in model.graph.node):
            without = f" beside keep_float ({', '.join(self.keep_float)})" if kept else ""
            raise MismatchError(f"{source} has nothing to quantize{without}: no {', '.join(sorted(WEIGHTED))}")
        with storage(path):
            quantized, able, notes = self._quantize(model, inputs, kept)
        float_outputs(quantized.graph)
        data = canonical_bytes(quantized)
        atomic_write(path, data)
        return {
            "activations": "uint8",
            "weights": f"int8{', 7 bits used' if self.reduce_range else ''}, one scale per {'channel' if self.per_channel else 'tensor'}",
            "calibration": self.calibration,
            "calibration_examples": len(inputs),
            **decisions(model.graph, quantized.graph, able, kept),
            "notes": list(dict.fromkeys(notes)),
            "source_bytes": source.stat().st_size,
            "file_bytes": len(data),
        }

    def _quantize(self, model: "ModelProto", inputs: Tensor, kept: list[str]) -> tuple["ModelProto", frozenset[str], list[str]]:
        """Return the quantized model, the operators that could be quantized, and what onnxruntime remarked."""
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.batches = iter(inputs.split(_batch(len(inputs))))

            def get_next(self) -> dict[str, Any]:
                batch = next(self.batches, None)
                return {} if batch is None else {name: batch.numpy()}

        name = model.graph.input[0].name
        able = frozenset({*QDQRegistry, *QLinearOpsRegistry})
        with tempfile.TemporaryDirectory(prefix="limbeck.") as folder, _remarks() as notes:
            start, end = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            prepared = onnx.ModelProto()
            prepared.CopyFrom(model)
            add_pre_process_metadata(prepared)  # BatchNorm was folded at export: onnxruntime's own preparation changed no figure
            onnx.save(prepared, start)
            quantization.quantize_static(
                start, end, Reader(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=sorted(able), per_channel=self.per_channel,
                reduce_range=self.reduce_range, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=kept, calibrate_method=quantization.CalibrationMethod[_METHODS[self.calibration]],
            )  # fmt: skip
            return onnx.load(end), able, notes


def _chosen(given: Tensor, examples: int) -> Tensor:
    """Return `examples` of the calibration inputs, spread evenly over them, or refuse them."""
    if given.ndim < 2 or len(given) < examples:
        have = len(given) if given.ndim >= 2 else f"a tensor {list(given.shape)}"
        raise DataError(f"calibration needs {examples} inputs [N, ...], and {have} was given: give more, or set examples to what there is")
    places = torch.arange(examples) * len(given) // examples
    inputs = given.detach().cpu()[places].contiguous()
    if not inputs.isfinite().all():
        raise DataError("calibration inputs hold numbers that are not finite: ranges cannot be measured on them")
    if (inputs == inputs[:1]).all():
        raise DataError(f"all {examples} calibration inputs are the same: ranges cannot be measured on them; give real training inputs")
    return inputs


def _batch(examples: int) -> int:
    """Return the largest batch, up to 32, that divides the examples: onnxruntime stacks the batches of a histogram."""
    return max(size for size in range(1, _BATCH + 1) if examples % size == 0)


@contextlib.contextmanager
def _remarks() -> Iterator[list[str]]:
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
