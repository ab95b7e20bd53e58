"""Cross-layer equalisation: channels that two layers share are scaled so that both layers' weights fill their range alike.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv:1906.04721, sec. 4.1: through f with f(s x) = s f(x),
s > 0, W2 f(W1 x + b1) = W2 S f(S^-1 W1 x + S^-1 b1), and s_i = sqrt(r1_i r2_i) / r2_i makes the ranges r1 of the rows of W1 and r2 of the columns of W2
equal. What the model computes stays the same.

Shapes: C channels between the two layers.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError, RecipeError

from ._fake import Fake
from ._observe_flow import ELEMENTWISE, POOLED, Flow, first_batch, flow_of
from .fold import shared_weights

__all__ = ["Equalize", "equalize_pair", "pairs_of"]

_SETTLED = 1e-3


class Equalize(Surgery):
    """Scale the channels between each two layers so that their weights fill their ranges alike; what the model computes stays the same.

    Pairs are found through ReLU, leaky ReLU, pooling and flattening. It matters most where weights have one step for the whole tensor, and for activations.
    Batch norm between two layers hides them from each other: fold it first (`quantize.fold`).

    Args:
        rounds: passes over all pairs at most; it ends once no factor changes by more than a thousandth.
    """

    def __init__(self, *, rounds: int = 20) -> None:
        if rounds < 1:
            raise RecipeError(f"rounds must be 1 or more, not {rounds}")
        self.rounds = rounds

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the model with its weights scaled.

        Raises:
            MismatchError: a model in which no two layers share channels, with what is between them.
        """
        pairs, said = pairs_of(model, flow_of(model, bench.task, first_batch(bench)))
        if not pairs:
            raise MismatchError(f"{type(model).__name__} has no two layers to equalize{': ' if said else ''}{'; '.join(said)}")
        made = copy.deepcopy(model)
        layers = [(made.get_submodule(first), made.get_submodule(second)) for first, second in pairs]
        before = [_spread(first) for first, _ in layers]
        for _ in range(self.rounds):
            if max([equalize_pair(first, second) for first, second in layers]) < _SETTLED:
                break
        rows = [
            {"name": first, "with": second, "spread_before": round(old, 3), "spread": round(_spread(layer), 3)}
            for (first, second), (layer, _), old in zip(pairs, layers, before, strict=True)
        ]
        return Operated(made, {}, {"equalized_pairs": len(pairs)}, rows, said)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model: its structure stays."""
        return model


def pairs_of(model: nn.Module, flow: Flow) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the paths of layers that share channels, two by two, and a line for each layer that batch norm hides."""
    shared, pairs, said = shared_weights(model), [], []
    for first, layer in model.named_modules():
        if type(layer) not in Fake.kinds or len(runs := flow.runs(first)) != 1 or first in shared:
            continue
        through = ELEMENTWISE if isinstance(layer, nn.Linear) else ELEMENTWISE | POOLED
        step, value = flow.next(runs[0]), runs[0].gives[0]
        while step is not None and step.name in through and len(step.gives) == 1:
            step, value = flow.next(step), step.gives[0]
        if step is None or step.path is None:
            continue
        second = model.get_submodule(step.path)
        if step.name.startswith("BatchNorm"):
            said.append(f"batch norm {step.path} stands behind {first}: fold it first (quantize.fold)")
        elif type(second) in Fake.kinds and len(flow.runs(step.path)) == 1 and step.path not in shared and _fits(layer, second, flow.shapes[value]):
            pairs.append((first, step.path))
    return pairs, said


def _fits(first: nn.Module, second: nn.Module, shape: Sequence[int]) -> bool:
    """Whether what `second` reads, of `shape`, has the channels of `first` in order."""
    channels = first.get_parameter("weight").shape[0]
    if isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        axis = -1 if isinstance(first, nn.Linear) else 1
        return isinstance(first, nn.Linear) == isinstance(second, nn.Linear) and shape[axis] == channels
    return len(shape) == 2 and shape[1] % channels == 0


@torch.no_grad()
def equalize_pair(first: nn.Module, second: nn.Module) -> float:
    """Scale the channels between two layers, in place; return the largest |log s|."""
    weight, after, bias = first.get_parameter("weight"), second.get_parameter("weight"), first.bias
    parts = second.groups if isinstance(second, (nn.Conv1d, nn.Conv2d)) else 1
    channels = len(weight)
    grouped = after.view(parts, len(after) // parts, channels // parts, -1)  # [groups, C_out / groups, C / groups, places]
    ranges, reads = weight.flatten(1).abs().amax(1), grouped.abs().amax((1, 3)).flatten()  # [C] each
    factor = torch.where((ranges > 0) & (reads > 0), (ranges / reads).sqrt(), 1.0)
    weight /= factor.view(-1, *[1] * (weight.ndim - 1))
    if isinstance(bias, Tensor):
        bias /= factor
    grouped *= factor.view(parts, 1, -1, 1)
    return factor.log().abs().max().item()


def _spread(layer: nn.Module) -> float:
    """The widest range of a channel's weights over the narrowest that is not zero."""
    ranges = layer.get_parameter("weight").detach().flatten(1).abs().amax(1)
    alive = ranges[ranges > 0]
    return (alive.max() / alive.min()).item() if len(alive) else 1.0
