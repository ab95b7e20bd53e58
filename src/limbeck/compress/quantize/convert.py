"""Integers stored: a prepared model as what it computes with, or a float model with its weights rounded to the nearest.

A prepared layer's codes are round(clamp(w / s, low, high)), its bias is of 32 bits; the converted model gives the same numbers as the prepared one.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError

from ._fake import Fake, fake_layers, weight_high
from ._integer import IntegerWeights, make_blank, make_integer
from ._observe import best_steps, chosen
from ._observe_flow import first_batch, flow_of
from .prepare import check_layers, check_rounding

__all__ = ["Convert", "figures", "grouped_steps", "store", "stored"]


class Convert(Surgery):
    """Store weights as integers: of the layers that `quantize.prepare` prepared, or, of a float model, of every convolution and linear layer.

    Exported to ONNX, a layer whose inputs are rounded too becomes an integer kernel; weights of 3 and 4 bits are packed two to a byte in both files, and
    computed with in 8 bits, for onnxruntime has no convolution of 4.

    Args:
        weights: bits of a weight of a float model, 2 to 8, rounded to the nearest; left out for a prepared one, which knows its own.
        group: weights of one output channel that share a step, of a float model; a whole channel where it is left out, or where it does not divide a layer's.
        only: the layers of a float model that are stored so, by path; all where it is left out.
        keep_float: layers of a float model that stay float, by path.
    """

    def __init__(self, *, weights: int | None = None, group: int | None = None, only: Sequence[str] | None = None, keep_float: Sequence[str] = ()) -> None:
        check_rounding(weights, group, only, keep_float)
        self.weights, self.group, self.only, self.keep_float = weights, group, only, tuple(keep_float)

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the model with stored integers.

        Raises:
            MismatchError: neither a prepared model nor bits for a float one, or both; a model that is converted already.
            DataError: weights that are not finite.
            RecipeError: a layer that is not there.
        """
        prepared = list(fake_layers(model))
        if prepared and self.weights is not None:
            raise MismatchError("the model is prepared, and its layers know their bits: leave `weights` out, or convert the float model")
        if not prepared and self.weights is None:
            raise MismatchError("the model is not prepared: say how many bits its weights get (weights: 8), or prepare it first (quantize.prepare)")
        made = copy.deepcopy(model)
        said: list[str] = []
        if self.weights is None:
            for layer in fake_layers(made).values():
                store(layer)
        else:
            flow = flow_of(model, bench.task, first_batch(bench))
            able, said = check_layers(model, flow)
            for path in chosen(able, self.only, self.keep_float):
                said += _round(path, made.get_submodule(path), self.weights, self.group)
        return stored(made, model, said)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model with the same layers of stored integers, all zero."""
        for path, told in record["layers"].items():
            make_blank(model.get_submodule(path), told)
        return model


@torch.no_grad()
def store(layer: Fake, codes: Tensor | None = None) -> IntegerWeights:
    """Make a prepared layer one of stored integers, in place: its own codes, or those that are given."""
    high, step = weight_high(layer.bits), layer.weight_step()
    codes = torch.clamp(layer.weight / step, -high, high).round() if codes is None else codes
    steps = step.flatten().expand(len(layer.weight))[:, None]
    return make_integer(layer, codes, steps.clone(), layer.bits, layer.bias, input=layer.input, output=layer.output)


@torch.no_grad()
def _round(path: str, layer: nn.Module, bits: int, group: int | None) -> list[str]:
    """Round a float layer's weights to the nearest, in place; return what is to be said."""
    weight, bias, high = layer.get_parameter("weight"), layer.bias, weight_high(bits)
    assert bias is None or isinstance(bias, Tensor)
    steps, said = grouped_steps(path, weight, high, group)
    codes = torch.clamp(weight.reshape(len(weight), steps.shape[1], -1) / steps[:, :, None], -high, high).round()
    make_integer(layer, codes.view_as(weight), steps, bits, bias)
    return said


def grouped_steps(path: str, weight: Tensor, high: int, group: int | None) -> tuple[Tensor, list[str]]:
    """Return steps `[C, G]` of least squared error, and a line where the groups do not fit."""
    each = weight[0].numel()
    fits = group is not None and group < each and each % group == 0
    said = [f"{path} has one step for each channel: {each} weights do not part into groups of {group}"] if group is not None and each % group else []
    rows = weight.detach().reshape(-1, group if fits and group is not None else each)
    return best_steps(rows, high).view(len(weight), -1), said


def stored(made: nn.Module, before: nn.Module, said: Sequence[str]) -> Operated:
    """Say what was stored: the record, the figures, a row for each layer."""
    layers = {path: module for path, module in made.named_modules() if isinstance(module, IntegerWeights)}
    rows = [
        {"name": path, "weights": one.told["bits"], "groups": one.told["groups"], "activations": one.told["input"], "output": one.told["output"],
         "bytes": one.codes.numel()}
        for path, one in layers.items()
    ]  # fmt: skip
    lines = list(said)
    if low := [path for path, one in layers.items() if one.codes.dtype is torch.uint8]:
        way = "computed with in 8 bits where the inputs are rounded, in float where they are not: onnxruntime has no kernel for fewer"
        lines.append(f"{len(low)} layers of 4 bits or fewer are packed in the file, and {way}")
    return Operated(made, {"layers": {path: dict(one.told) for path, one in layers.items()}}, figures(made, before), rows, lines)


def figures(made: nn.Module, before: nn.Module) -> dict[str, float]:
    """Return how many numbers the stored model stands for, and the bytes of its tensors and of those before."""
    layers = [module for module in made.modules() if isinstance(module, IntegerWeights)]
    biases = sum(one.shape[0] for one in layers if one.told["bias"])
    plain = sum(parameter.numel() for parameter in made.parameters())
    return {"parameters": plain + biases + sum(one.weights for one in layers), "weight_bytes": _bytes(made), "weight_bytes_before": _bytes(before)}


def _bytes(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())
