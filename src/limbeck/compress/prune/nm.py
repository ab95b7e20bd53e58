"""N:M sparsity: of every m weights in a row, n stay.

Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378, sec. 3: 2:4, which the sparse units of recent GPUs read.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Held, Operated
from limbeck.core.errors import RecipeError

from ._mask import hold_zeros, lowest, prunable, record_of, recorded, remove, restored, scores, still_there
from .saliency._named import named

__all__ = ["Nm"]


class Nm(Held):
    """Of every m weights that follow each other along a layer's inputs, leave the n that cost most.

    A linear weight `[O, I]` is cut along I; a convolution's `[O, I, ...]` along its input channels, at each place of the kernel. A layer whose inputs are not a
    multiple of m is left as it is, and said. On processors without sparse units, and in a dense export, this is not faster: it is a pattern for runtimes that
    read it.

    Args:
        n: weights that stay of m.
        m: weights of a group.
        saliency: what a weight costs, by name or as {kind: obd, examples: 1000}.
        layers: layers or parameters to prune, with * for anything; all weights of two or more dimensions where it is not given.
        spare: layers or parameters to leave as they are.

    Raises:
        RecipeError: n and m that make no pattern, a pattern that names nothing, no layer whose inputs are a multiple of m, one that has the pattern already.
    """

    def __init__(
        self, *, n: int = 2, m: int = 4, saliency: str | dict[str, Any] = "magnitude", layers: list[str] | None = None, spare: list[str] | None = None
    ) -> None:
        if not 1 <= n < m:
            raise RecipeError(f"{n}:{m} is no pattern: of m weights n stay, 1 or more and fewer than m, as in 2:4")
        self.n, self.m = n, m
        self.layers, self.spare = layers, spare or []
        self.saliency = named(saliency)

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        every = prunable(model, self.layers, self.spare, biases=False)
        parameters = {name: parameter for name, parameter in every.items() if parameter.shape[1] % self.m == 0}
        odd = [
            f"{name!r} stays dense: its {parameter.shape[1]} inputs are no multiple of {self.m}" for name, parameter in every.items() if name not in parameters
        ]
        if not parameters:
            raise RecipeError(f"{self.n}:{self.m} fits no layer: {odd[0]}; the closest that fit are an m that divides the inputs, or prune.weights")
        groups = _groups(parameters, self.m)
        flat = torch.cat([parameter.detach().double().cpu().flatten() for parameter in parameters.values()])
        live = groups.bincount(weights=(flat != 0).double()).long()
        if not (live > self.n).any():
            raise RecipeError(f"the weights have the pattern {self.n}:{self.m} already: nothing would be pruned")
        with restored(parameters):
            cost = scores(self.saliency, model, list(parameters), bench)
            remove(model, parameters, lowest(cost, flat, groups, live.clamp(max=self.n)), self.saliency, bench)
        left, total = sum(int(parameter.count_nonzero()) for parameter in every.values()), sum(map(Tensor.numel, every.values()))
        table = [{"name": name, "weights": parameter.numel(), "left": int(parameter.count_nonzero())} for name, parameter in every.items()]
        return Operated(model, record_of(parameters), {"weights_left": left, "sparsity": 1 - left / total}, table, odd)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model as it is: its zeros are in its weights."""
        recorded(model, record)
        return model

    @staticmethod
    def hold(model: nn.Module, record: Mapping[str, Any]) -> None:
        """Give every pruned parameter's zeros a gradient of zero."""
        hold_zeros(still_there(model, record))


def _groups(parameters: Mapping[str, Tensor], m: int) -> Tensor:
    """The group of each weight, `[P]`: m neighbours along the second dimension."""
    found, at = [], 0
    for parameter in parameters.values():
        moved = parameter.detach().movedim(1, -1)
        numbers = torch.arange(at, at + moved.numel() // m).repeat_interleave(m).reshape(moved.shape)
        found.append(numbers.movedim(-1, 1).flatten())
        at += moved.numel() // m
    return torch.cat(found)
