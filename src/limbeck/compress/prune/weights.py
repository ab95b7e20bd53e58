"""Prune weights one by one: the cheapest become zero, whatever layer they are of.

LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989; Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
arXiv:1506.02626.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Held, Operated
from limbeck.core.errors import RecipeError

from ._mask import emptied, hold_zeros, lowest, prunable, record_of, recorded, remove, restored, rows, scores, still_there
from ._target import Target, apportion, goal, weights_left
from .saliency._named import named

__all__ = ["Weights"]


class Weights(Held):
    """Set the weights that cost least to zero, and keep them there in later training.

    The model keeps its shape: fewer weights make a smaller file once it is coded (share.lbk), not a faster net. Weights that are zero before count as removed,
    so that a second surgery goes on where the first ended.

    Args:
        target: {ratio: 0.9}, the share of the weights removed, or {keep: 1000}, the weights left.
        saliency: what a weight costs, by name or as {kind: obd, examples: 1000}.
        scope: global (weights of all layers are compared), layer, or row (within one output, as wanda means it); by the last two each has its share.
        steps: how often the saliency is measured on the way, as many weights going each time; each: for every single weight.
        layers: layers or parameters to prune, with * for anything; all weights of two or more dimensions where it is not given.
        spare: layers or parameters to leave as they are.
        biases: prune biases as well, which then count as weights.
        aim: what for: bytes, or latency, which zeros do not help.
        force: prune for latency all the same.

    Raises:
        RecipeError: a target that cannot be reached, a pattern that names nothing, latency without force.
        DataError: weights or a saliency that are not finite.
    """

    def __init__(
        self,
        *,
        target: Target,
        saliency: str | dict[str, Any] = "magnitude",
        scope: Literal["global", "layer", "row"] = "global",
        steps: int | Literal["each"] = 1,
        layers: list[str] | None = None,
        spare: list[str] | None = None,
        biases: bool = False,
        aim: Literal["bytes", "latency"] = "bytes",
        force: bool = False,
    ) -> None:
        if scope not in ("global", "layer", "row"):
            raise RecipeError(f"scope of prune.weights is {scope!r}; it is global, layer or row")
        if steps != "each" and (isinstance(steps, str) or steps < 1):
            raise RecipeError(f"steps of prune.weights must be 1 or more, or each, not {steps!r}")
        if aim == "latency" and not force:
            raise RecipeError(
                "prune.weights cannot lower latency: a dense matrix product takes as long over zeros; take prune.channels, which makes the matrices smaller, "
                "or force: true"
            )
        self.target, self.scope, self.steps = goal(target, "prune.weights"), scope, steps
        self.layers, self.spare, self.biases = layers, spare or [], biases
        self.saliency = named(saliency)

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        parameters = prunable(model, self.layers, self.spare, biases=self.biases)
        groups = self._groups(parameters)
        sizes = groups.bincount()
        live = _live(parameters, groups)
        left = weights_left(self.target, int(sizes.sum()), int(live.sum()))
        end = torch.tensor(apportion(left, sizes.tolist())).minimum(live)
        going = int((live - end).sum())
        if not going:
            raise RecipeError(f"every {self.scope} has no more weights than its share of the {left} that the target leaves: nothing would be pruned")
        steps = going if isinstance(self.steps, str) else min(self.steps, going)
        with restored(parameters):
            for step in range(1, steps + 1):
                now = _between(live, end, step, steps)
                cost = scores(self.saliency, model, list(parameters), bench)
                remove(model, parameters, lowest(cost, _flat(parameters), groups, now), self.saliency, bench)
        return Operated(model, record_of(parameters), _metrics(parameters), _rows(parameters), emptied(parameters))

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model as it is: its zeros are in its weights."""
        recorded(model, record)
        return model

    @staticmethod
    def hold(model: nn.Module, record: Mapping[str, Any]) -> None:
        """Give every pruned parameter's zeros a gradient of zero."""
        hold_zeros(still_there(model, record))

    def _groups(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The group of each weight, within which it is compared, `[P]`."""
        if self.scope == "row":
            return rows(parameters)
        sizes = torch.tensor([parameter.numel() for parameter in parameters.values()])
        return torch.arange(len(sizes)).mul(self.scope == "layer").repeat_interleave(sizes)


def _flat(parameters: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([parameter.detach().double().cpu().flatten() for parameter in parameters.values()])


def _live(parameters: Mapping[str, Tensor], groups: Tensor) -> Tensor:
    """How many weights of each group are not zero, `[G]`."""
    return groups.bincount(weights=(_flat(parameters) != 0).double()).long()


def _between(live: Tensor, end: Tensor, step: int, steps: int) -> Tensor:
    """How many weights each group has left after a step, `[G]`: as many of all have gone as `step / steps` of those that go.

    >>> _between(torch.tensor([5, 3]), torch.tensor([1, 3]), 1, 4)
    tensor([4, 3])
    """
    going = live - end
    return live - torch.tensor(apportion(int(going.sum()) * step // steps, going.tolist()))


def _metrics(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    total, left = sum(map(Tensor.numel, parameters.values())), sum(int(parameter.count_nonzero()) for parameter in parameters.values())
    return {"weights_left": left, "sparsity": 1 - left / total}


def _rows(parameters: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [{"name": name, "weights": parameter.numel(), "left": int(parameter.count_nonzero())} for name, parameter in parameters.items()]
