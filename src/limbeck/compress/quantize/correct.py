"""Bias correction: the mean error that rounding puts on each channel, taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv:1906.04721, sec. 4.2: E[y^] - E[y] is subtracted from
the bias, both means measured on real inputs, layer by layer.

Shapes: C output channels.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError, RecipeError

from ._fake import Fake, exactly, fake_layers
from ._observe import watched
from ._observe_flow import first_batch, flow_of

__all__ = ["Correct"]


class Correct(Surgery):
    """Take the mean error that rounding causes off the biases of a prepared model, in the order in which its layers run.

    It stands between `quantize.prepare` and `quantize.convert` where there is no training between them: the reference is the prepared model itself, its
    rounding switched off. A layer without a bias gets one.

    Args:
        examples: training inputs on which means are measured.
    """

    def __init__(self, *, examples: int = 512) -> None:
        if examples < 1:
            raise RecipeError(f"examples must be 1 or more, not {examples}")
        self.examples = examples

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the prepared model with other biases.

        Raises:
            MismatchError: a model that is not prepared, or was trained since, so that it is no reference for itself.
        """
        made = copy.deepcopy(model)
        layers = fake_layers(made)
        if not layers:
            raise MismatchError("bias correction works on a prepared model: prepare it first (quantize.prepare)")
        if any(parameter.any() for path, layer in layers.items() for parameter in (layer.weight_growth, *_growths(layer))):
            raise MismatchError("the model was trained since it was prepared, which corrects its biases itself: prepare and correct the float model instead")
        flow = flow_of(made, bench.task, first_batch(bench))
        order = list(dict.fromkeys(step.path for step in flow.steps if step.path in layers))
        with exactly(made):
            wanted = self._means(made, {path: layers[path] for path in order}, bench)
        rows, without = [], [path for path in order if layers[path].bias is None]
        for path in without:
            _give_bias(layers[path])
        for path in order:
            shift = self._means(made, {path: layers[path]}, bench)[path] - wanted[path]
            bias, rounded = layers[path].bias, layers[path].rounded_bias()
            assert bias is not None and rounded is not None
            with torch.no_grad():
                bias.copy_(rounded - shift)
            rows.append({"name": path, "mean_shift": shift.abs().mean().item()})
        return Operated(made, {"biases": without}, {"corrected_layers": len(order)}, rows)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model with a bias for the layers that had none."""
        for path in record["biases"]:
            layer = model.get_submodule(path)
            assert isinstance(layer, Fake)
            _give_bias(layer)
        return model

    def _means(self, model: nn.Module, layers: Mapping[str, Fake], bench: Bench) -> dict[str, Tensor]:
        """Return the mean of each channel `[C]` that each layer gives before it is rounded again."""
        sums = {id(layer): [torch.zeros(len(layer.weight), dtype=torch.float64, device=layer.weight.device), 0] for layer in layers.values()}

        def hear(layer: nn.Module, _given: Tensor, output: Tensor, _share: float) -> None:
            rows = output.flatten(0, -2) if isinstance(layer, nn.Linear) else output.transpose(0, 1).flatten(1).mT  # [M, C]
            sums[id(layer)][0] += rows.double().sum(0)
            sums[id(layer)][1] += len(rows)

        with _unrounded(layers.values()):
            watched(model, bench, self.examples, hear, layers.values())
        return {path: (sums[id(layer)][0] / sums[id(layer)][1]).to(layer.weight.dtype) for path, layer in layers.items()}


def _growths(layer: Fake) -> list[Tensor]:
    return [grid.growth for grid in (layer.input, layer.output) if grid is not None]


def _give_bias(layer: Fake) -> None:
    layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))


@contextmanager
def _unrounded(layers: Any) -> Iterator[None]:
    """Let layers give what they sum, their inputs and weights still rounded."""
    grids = [(layer, layer.output) for layer in layers]
    for layer, _ in grids:
        layer.output = None
    try:
        yield
    finally:
        for layer, grid in grids:
            layer.output = grid
