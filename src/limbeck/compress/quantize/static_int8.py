"""Static INT8: weights and activations in 8 bits, their ranges measured beforehand on real inputs.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, eq. 1:
r = S (q - Z). Weights are int8, symmetric (Z = 0), with one scale per output channel; activations uint8 with any Z; biases int32 of scale S_input S_weight.
The ranges are ours (`_calibration`), the nodes are onnxruntime's `quantize_static`; the file is ONNX in QDQ form.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from limbeck.bridges.onnx import canonical_bytes, load
from limbeck.bridges.onnx_runtime import run
from limbeck.compress._method import Compressor
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.files import atomic_write, storage

from ._calibration import CALIBRATIONS, activation_ranges, float_values
from ._calibration_bias import correct
from ._gate import Change, probe, probe_whole, refuse
from ._inputs import Inputs, count, cut, tensors
from ._qdq import WEIGHTED, Form, able, decisions, insert_qdq, larger, name_nodes, nodes_of, stacked, unquantized
from ._sensitivity import layers, most_sensitive, sensitivities

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["StaticInt8"]

_BATCH = 32
_PERCENTILE = 99.999
_NO_SLOWER = 0.95
"""Of the time with uint8 activations: what noise may pass for."""


class StaticInt8(Compressor):
    """Quantize an ONNX file to INT8 weights and activations; the logits stay float.

    Args:
        calibration: how an activation's range is chosen: minmax (all that was seen), percentile, mse (least squared error) or entropy (least divergence).
        percentile: of percentile alone, how many percent of what was seen lie within the range; None is 99.999.
        examples: how many calibration inputs are used, spread evenly over those given.
        per_channel: one scale for each output channel of a weight, not one for the whole.
        reduce_range: weights of 7 bits, for x86 processors without VNNI, whose 16-bit sums could saturate.
        activations: the type of activations: uint8, or int8, which onnxruntime runs slower on x86; it is refused where that is measured.
        keep_float: layers (or nodes) that are not quantized, by name, such as head.
        float_layers: how many more layers stay float, those whose quantization alone costs the logits most, measured on the calibration inputs.
        correct_bias: what quantization adds to the mean of each output channel is taken off its bias, layer after layer.
        aim: what it is for: bytes; or latency, which refuses a file that a probe finds no faster in INT8 on this machine.
        force: quantize all the same where the probe refuses.
    """

    def __init__(
        self,
        *,
        calibration: Literal["minmax", "percentile", "entropy", "mse"] = "minmax",
        percentile: float | None = None,
        examples: int = 256,
        per_channel: bool = True,
        reduce_range: bool = False,
        activations: Literal["uint8", "int8"] = "uint8",
        keep_float: list[str] | None = None,
        float_layers: int = 0,
        correct_bias: bool = False,
        aim: Literal["bytes", "latency"] = "bytes",
        force: bool = False,
    ) -> None:
        for name, given, known in (
            ("calibration", calibration, CALIBRATIONS), ("activations", activations, ("uint8", "int8")), ("aim", aim, ("bytes", "latency")),
        ):  # fmt: skip
            if given not in known:
                raise RecipeError(f"{name} cannot be {given!r}{did_you_mean(str(given), known)}")
        if percentile is not None and calibration != "percentile":
            raise RecipeError(f"percentile is {percentile:g} and calibration {calibration}, which has none: calibration: percentile")
        if percentile is not None and not 50 < percentile <= 100:
            raise RecipeError(f"percentile must be above 50 and 100 at most, not {percentile:g}")
        if examples < 2:
            raise RecipeError(f"examples must be 2 or more, not {examples}: a range is not measured on one input")
        if float_layers < 0:
            raise RecipeError(f"float_layers must be 0 or more, not {float_layers}")
        self.calibration, self.percentile, self.examples = calibration, _PERCENTILE if percentile is None else percentile, examples
        self.form = Form(activations, per_channel, reduce_range)
        self.keep_float = tuple(keep_float or ())
        self.float_layers, self.correct_bias = float_layers, correct_bias
        self.aim, self.force = aim, force

    def compress(self, source: Path, path: Path, calibration: Inputs) -> dict[str, Any]:
        """Write the INT8 form of the ONNX file `source` to `path`, calibrated on inputs `[N, ...]`; return what was decided.

        Of what is returned, `quantized`, `absorbed` and `left_float` say what became of every node, `notes` what onnxruntime had to remark, `sensitivity`
        how each layer took it where `float_layers` asked, `probe` what was timed before any of it.

        Raises:
            ArtifactError: `source` is missing or damaged.
            DataError: calibration inputs that are too few, all the same, or not finite.
            MismatchError: inputs of another shape or type than the file takes, a file that is quantized already, or one without a layer to quantize;
                what the probe finds no faster, unless forced.
            RecipeError: `keep_float` names what the file has not, or `float_layers` all that it has.
        """
        from onnx.shape_inference import infer_shapes

        model = infer_shapes(load(source))
        unquantized(source, model.graph)
        name_nodes(model.graph)
        inputs = _chosen(calibration, self.examples)
        reference = run(source, inputs)
        if not reference.isfinite().all():
            raise DataError(f"{source} answers calibration inputs with numbers that are not finite: mend the model before it is quantized")
        kept = {**(stacked(model.graph) if self.form.per_channel else {}), **dict.fromkeys(nodes_of(model.graph, self.keep_float), "kept by keep_float")}
        if not any(node.op_type in WEIGHTED and node.name not in kept for node in model.graph.node):
            without = f" beside keep_float ({', '.join(self.keep_float)})" if kept else ""
            raise MismatchError(f"{source} has nothing to quantize{without}: no {', '.join(sorted(WEIGHTED))}")
        probed, notes = self._probed(source, model, cut(inputs, slice(1)), kept)
        with storage(path):
            told, quantized = self._quantized(model, inputs, reference, kept)
        data = canonical_bytes(quantized)
        atomic_write(path, data)
        return {
            "activations": self.form.activations,
            "weights": f"int8{', 7 bits used' if self.form.reduce_range else ''}, one scale per {'channel' if self.form.per_channel else 'tensor'}",
            "calibration": self.calibration,
            **({"percentile": self.percentile} if self.calibration == "percentile" else {}),
            "calibration_examples": count(inputs),
            **told,
            "notes": [*notes, *told["notes"], *larger(len(data), source)],
            **({"probe": probed} if probed else {}),
            "source_bytes": source.stat().st_size,
            "file_bytes": len(data),
        }

    def _probed(self, source: Path, model: "ModelProto", example: Inputs, kept: Collection[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Ask the gate what the options call for; nothing is timed where they call for nothing, and the same options give the same answer again."""
        found, notes = [], []
        form = self.form
        if form.activations == "int8":
            signed, unsigned = (_changed(Form(kind, form.per_channel, form.reduce_range), kept, float_ends=True) for kind in ("int8", "uint8"))
            found.append(probe_whole(model, example, "int8 in place of uint8 activations", signed, unsigned))
            notes += refuse(found[-1], source.name, "activations: uint8", least=_NO_SLOWER, force=self.force)
        if self.aim == "latency":
            found.append(probe(model, example, f"static INT8 with {form.activations} activations", _changed(form, (), float_ends=False), kept=kept))
            notes += refuse(found[-1], source.name, "aim: bytes takes it for its size", force=self.force)
        return [one.told() for one in found], notes

    def _quantized(self, model: "ModelProto", inputs: Inputs, reference: Tensor, kept: dict[str, str]) -> tuple[dict[str, Any], "ModelProto"]:
        """Return what was decided, and the quantized model."""
        quantizable = able()
        values = float_values(model.graph, quantizable)
        ranges = activation_ranges(model, inputs, values, calibration=self.calibration, percentile=self.percentile, batch=_BATCH)
        wild = set(values) - ranges.keys()
        touched = [node.name for node in model.graph.node if node.op_type in quantizable and wild & {*node.input, *node.output}]
        kept, extra = {**dict.fromkeys(touched, "what it reads or gives is not finite"), **kept}, {}
        if self.float_layers:
            whole, _ = insert_qdq(model, ranges, self.form, kept=kept)
            groups = layers(model.graph, decisions(model.graph, whole.graph, quantizable, kept)["quantized"])
            rows = sensitivities(groups, lambda nodes: insert_qdq(model, ranges, self.form, only=nodes)[0], reference, inputs)
            floats = most_sensitive(rows, self.float_layers)
            kept |= {node: "among the most sensitive layers (float_layers)" for row in floats for node in row["nodes"]}
            extra["sensitivity"] = [{**row, "float": row in floats} for row in rows]
        if self.correct_bias:
            nodes = decisions(model.graph, insert_qdq(model, ranges, self.form, kept=kept)[0].graph, quantizable, kept)["quantized"]
            model, done, without = correct(model, nodes, lambda one: insert_qdq(one, ranges, self.form, kept=kept)[0], inputs)
            extra |= {"bias_corrected": done, "bias_not_corrected": without}
        quantized, notes = insert_qdq(model, ranges, self.form, kept=kept)
        return {**decisions(model.graph, quantized.graph, quantizable, kept), **extra, "notes": notes}, quantized


def _changed(form: Form, kept: Collection[str], *, float_ends: bool) -> Change:
    """Return what the quantizer makes of a graph: one cut out of another ends in 8 bits, as it would there."""
    from onnx.shape_inference import infer_shapes

    return lambda graph, ranges: insert_qdq(infer_shapes(graph), ranges, form, kept=kept, float_ends=float_ends)[0]


def _chosen(given: Inputs, examples: int) -> Inputs:
    """Return `examples` of the calibration inputs, spread evenly over them, or refuse them."""
    if any(one.ndim < 2 for one in tensors(given)) or count(given) < examples:
        have = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) and given.ndim < 2 else count(given)
        raise DataError(f"calibration needs {examples} inputs [N, ...], and {have} was given: give more, or set examples to what there is")
    places = torch.arange(examples) * count(given) // examples
    whole = given.detach().cpu() if isinstance(given, Tensor) else {name: value.detach().cpu() for name, value in given.items()}
    inputs = cut(whole, places)
    if not all(one.isfinite().all() for one in tensors(inputs)):
        raise DataError("calibration inputs hold numbers that are not finite: ranges cannot be measured on them")
    if all((one == one[:1]).all() for one in tensors(inputs)):
        raise DataError(f"all {examples} calibration inputs are the same: ranges cannot be measured on them; give real training inputs")
    return inputs
