"""Quantization-aware training: weights and activations rounded while the model trains, so that it learns to live with it.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, sec. 3;
steps learnt as in Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153. Trained under the float model as the teacher:
Polino et al., "Model compression via distillation and quantization", ICLR 2018, arXiv:1802.05668, sec. 3.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import DataError, MismatchError, RecipeError

from ._fake import Fake, Grid, fake_quantize, make_fake, weight_high
from ._integer import IntegerWeights
from ._observe import Sample, best_range, best_steps, chosen, observe
from ._observe_flow import Flow, first_batch, flow_of
from .fold import folded, foldings

__all__ = ["Prepare", "check_bits", "check_layers", "check_rounding"]

_PASSING = frozenset({
    "ReLU", "Identity", "Dropout", "Dropout1d", "Dropout2d", "MaxPool1d", "MaxPool2d", "Flatten",
    "relu", "relu_", "dropout", "max_pool1d", "max_pool2d", "flatten", "view", "reshape", "transpose", "permute", "unflatten",
})  # fmt: skip
"""Steps that a runtime does on codes as well as on numbers."""

_FINEST = 2.0**24
"""Codes of a bias are kept below: float32 holds no more of them exactly."""


class Prepare(Surgery):
    """Make every convolution and linear layer compute with rounded weights and inputs; what is trained from here on learns with the rounding.

    Batch norm is folded first. Ranges are measured on training inputs, chosen for the least squared error. Module paths stay. `quantize.convert` stores what
    came of it as integers. Layers that are no nn.Conv1d, nn.Conv2d or nn.Linear stay float, and are named.

    Args:
        weights: bits of a weight, 2 to 8; codes are symmetric, -7 to 7 for 4.
        activations: bits of what a layer reads, 2 to 8; none leaves it float.
        ends: bits of weights and inputs of the first and of the last layer, which rounding hurts most; none treats them as the others.
        outputs: bits of what a layer gives where not one quantized layer alone reads it (an average, a sum), so that a runtime computes it by integers too;
            none leaves it float.
        per_channel: one step for each output channel of a weight, not one for the whole.
        ranges: of activations in training: learned by gradient, or an average that follows what is seen.
        examples: training inputs on which ranges are measured.
        only: the layers that are quantized, by path, layers in them included; all where it is left out.
        keep_float: layers that stay float, by path.
        fold: fold batch norm into the layer before it; a norm that is not stays float, and a sum of float and rounded numbers is computed in float.
    """

    def __init__(
        self,
        *,
        weights: int = 8,
        activations: int | None = 8,
        ends: int | None = 8,
        outputs: int | None = 8,
        per_channel: bool = True,
        ranges: Literal["learned", "average"] = "learned",
        examples: int = 512,
        only: Sequence[str] | None = None,
        keep_float: Sequence[str] = (),
        fold: bool = True,
    ) -> None:
        for name, bits in (("weights", weights), ("activations", activations), ("ends", ends), ("outputs", outputs)):
            if bits is not None:
                check_bits(name, bits)
        if ranges not in ("learned", "average"):
            raise RecipeError(f"ranges must be learned or average, not {ranges!r}")
        if examples < 1:
            raise RecipeError(f"examples must be 1 or more, not {examples}")
        self.weights, self.activations, self.ends, self.outputs = weights, activations, ends, outputs
        self.per_channel, self.ranges, self.examples = per_channel, ranges, examples
        self.only, self.keep_float, self.fold = only, tuple(keep_float), fold

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the model with fake-quantized layers, its batch norms folded.

        Raises:
            MismatchError: a model that is quantized already, or has no layer to quantize.
            DataError: weights, or calibration inputs, that are not finite; a layer that reads one number alone.
            RecipeError: a layer that is not there.
        """
        made = copy.deepcopy(model)
        batch = first_batch(bench)
        flow = flow_of(made, bench.task, batch)
        pairs, said = foldings(made, flow) if self.fold else ([], [])
        if pairs:
            flow = flow_of(folded(made, pairs), bench.task, batch)
            said.insert(0, f"{len(pairs)} batch norms are folded into the layers before them")
        able, left = check_layers(made, flow)
        wanted = chosen(able, self.only, self.keep_float)
        if not wanted:
            raise MismatchError(f"no layer of {type(made).__name__} is left to quantize beside keep_float ({', '.join(self.keep_float)})")
        seen = observe(made, {path: made.get_submodule(path) for path in wanted}, bench, self.examples)
        told = {path: self._told(path, able, wanted, flow) for path in wanted}
        rows = [_quantize(path, make_fake(made.get_submodule(path), told[path]), *seen[path], _rectified(flow, path)) for path in wanted]
        if self.ends is not None and self.ends != self.weights and set(wanted) <= {able[0], able[-1]}:
            said.append(f"no weight has {self.weights} bits: every layer is the first or the last, which have {self.ends} (ends)")
        record = {"pairs": [list(pair) for pair in pairs], "layers": told}
        return Operated(made, record, {"quantized_layers": len(wanted)}, rows, [*said, *left])

    def _told(self, path: str, able: Sequence[str], wanted: Sequence[str], flow: Flow) -> dict[str, Any]:
        end = self.ends if self.ends is not None and path in (able[0], able[-1]) else None
        rounded = self.activations is not None
        output = self.outputs if rounded and _read_in_float(flow, path, wanted) else None
        return {
            "weights": end or self.weights, "activations": (end or self.activations) if rounded else None, "output": output,
            "per_channel": self.per_channel, "learned": self.ranges == "learned",
        }  # fmt: skip

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model with the same norms folded and the same layers fake-quantized."""
        folded(model, record["pairs"])
        for path, told in record["layers"].items():
            make_fake(model.get_submodule(path), told)
        return model


def check_bits(option: str, bits: int) -> None:
    """Refuse bits that a code cannot have.

    Raises:
        RecipeError: fewer than 2 or more than 8.
    """
    if isinstance(bits, bool) or not 2 <= bits <= 8:
        raise RecipeError(f"{option} must be 2 to 8 bits, not {bits}")


def check_rounding(weights: int | None, group: int | None, only: Sequence[str] | None, keep_float: Sequence[str]) -> None:
    """Refuse options of how a float model's weights are rounded that cannot be meant together.

    Raises:
        RecipeError: bits that a code cannot have, a group of less than 2 weights, or anything said of weights whose bits are not.
    """
    if weights is not None:
        check_bits("weights", weights)
    elif group is not None or only is not None or keep_float:
        raise RecipeError("group, only and keep_float are about a float model's weights: give their bits too, such as weights: 4")
    if group is not None and group < 2:
        raise RecipeError(f"group must be 2 or more weights, not {group}")


def check_layers(model: nn.Module, flow: Flow) -> tuple[list[str], list[str]]:
    """Return the layers that can be quantized, in the order in which they run, and a line for each with weights that cannot.

    Raises:
        MismatchError: a model that is prepared or converted already, or has no such layer.
        DataError: weights that are not finite.
    """
    said: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, (Fake, IntegerWeights)):
            raise MismatchError(f"{path} is quantized already: {'convert it (quantize.convert)' if isinstance(module, Fake) else 'start from the float model'}")
        if type(module) in Fake.kinds:
            if not all(parameter.isfinite().all() for parameter in module.parameters(recurse=False)):
                raise DataError(f"the weights of {path} are not finite: mend the model before it is quantized")
            if not flow.runs(path):
                said.append(f"{path} stays float: it does not run by itself")
        elif any("weight" in name and parameter.ndim > 1 for name, parameter in module.named_parameters(recurse=False)):
            said.append(f"{path or 'the model itself'} stays float: {type(module).__name__} is no nn.Conv1d, nn.Conv2d or nn.Linear")
    able = list(dict.fromkeys(step.path for step in flow.steps if step.path is not None and type(model.get_submodule(step.path)) in Fake.kinds))
    if not able:
        raise MismatchError(f"{type(model).__name__} has no layer to quantize: no nn.Conv1d, nn.Conv2d or nn.Linear runs in it")
    return able, said


def _read_in_float(flow: Flow, path: str, wanted: Sequence[str]) -> bool:
    """Whether something other than one quantized layer reads what a layer gives; the model's answer is to stay float."""
    for step in flow.runs(path):
        after = flow.next(step)
        while after is not None and after.name in _PASSING:
            after = flow.next(after)
        if after is not None and after.name == "output":
            return False
        if after is None or after.path not in wanted:
            return True
    return False


def _rectified(flow: Flow, path: str) -> bool:
    """Whether a ReLU alone reads what a layer gives, so that its grid may start at zero."""
    for step in flow.runs(path):
        after = flow.next(step)
        while after is not None and after.name == "Identity":  # a norm that was folded
            after = flow.next(after)
        if after is None or after.name not in ("ReLU", "relu", "relu_"):
            return False
    return True


@torch.no_grad()
def _quantize(path: str, layer: Fake, reads: Sample, gives: Sample, rectified: bool) -> dict[str, Any]:
    """Set a layer's grids by what was seen; return its row."""
    high = weight_high(layer.bits)
    start = best_steps(layer.weight.flatten(1) if layer.told["per_channel"] else layer.weight.reshape(1, -1), high)
    if layer.input is not None:
        layer.input.measured(*best_range(reads.all(), reads.low, reads.high, layer.input.codes))
        if layer.bias is not None:
            greatest = layer.bias.abs() if len(start) > 1 else layer.bias.abs().amax()
            start = torch.maximum(start, greatest / (layer.input.step() * _FINEST))
    layer.weight_start.copy_(start.view_as(layer.weight_start))
    if layer.output is not None:
        _measure_output(layer.output, gives, rectified)
    noise = (fake_quantize(layer.weight, layer.weight_step(), -high, high) - layer.weight).square().sum()
    return {
        "name": path, "weights": layer.bits, "activations": layer.told["activations"], "output": layer.told["output"],
        "weight_sqnr_db": round((10 * torch.log10(layer.weight.square().sum() / noise.clamp_min(1e-30))).item(), 2),
    }  # fmt: skip


def _measure_output(grid: Grid, gives: Sample, rectified: bool) -> None:
    values: Tensor = gives.all().clamp_min(0) if rectified else gives.all()
    low, high = (0.0, max(gives.high, 0.0)) if rectified else (gives.low, gives.high)
    dead = low == 0 and high == 0
    grid.measured(*best_range(values, low, 1.0 if dead else high, grid.codes))
