"""Gradual pruning: the share of zeros rises while the network trains.

Zhu and Gupta, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression", 2017, arXiv:1710.01878; Sanh, Wolf and Rush, "Movement
Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv:2005.07683.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError, RecipeError

from ._mask import prunable, recorded
from ._schedule import Judge, Rise, Scope, attach, masked
from ._target import Ratio, Target, goal, weights_left

__all__ = ["Gradual"]


class Gradual(Surgery):
    """Prepare a model for pruning within the training that follows: the share of zero weights rises from none at `start` to the target at `end`.

    After k of n prunings the sparsity is s_k = s (1 - (1 - k/n)^3): Zhu & Gupta 2017, arXiv:1710.01878, eq. 1, from no zeros. The layers read their weights
    through masks; a masked weight gets no gradient but stays, and comes back where a later pruning finds it among the best. From `end` on the masks stand
    still, so that training goes on with what is left; epochs before that are of a denser network, and none of them is to be chosen: `select: last`.
    `prune.finish` makes plain weights of the trained model, with exact zeros.

    By movement a weight is judged by how training moves it, away from zero or towards it, and not by its size: scores S sum -w dL/dw, learnt straight through
    the mask by the stage's own optimizer, and the highest stay (Sanh et al. 2020, arXiv:2005.07683). In that paper the masks follow the scores at every step
    and to the end; here at each pruning, until `end`.

    Args:
        target: {ratio: 0.9}, the share of the weights that is zero in the end, or {keep: 1000}, the weights left.
        start: the share of training after which it begins.
        end: the share of training after which the masks stand still, below 1.
        every: the share of training between two prunings.
        scope: whether each layer comes to the target's share (layer) or all together (global); either way a layer keeps its best weight.
        saliency: magnitude, or movement, for a trained network that learns another task.
        layers: layers or parameters to prune, with * for anything; all weights of two or more dimensions where it is not given.
        spare: layers or parameters to leave as they are.

    Raises:
        RecipeError: shares out of order, a target that cannot be reached, a pattern that names nothing.
        MismatchError: a weight that is tied to another, a recurrent layer's, or a model that is prepared already.
    """

    lasts = False

    def __init__(
        self,
        *,
        target: Target,
        start: float = 0.0,
        end: float = 0.75,
        every: float = 0.01,
        scope: Scope = "layer",
        saliency: Judge = "magnitude",
        layers: list[str] | None = None,
        spare: list[str] | None = None,
    ) -> None:
        if not 0 <= start < end < 1:
            raise RecipeError(
                f"pruning goes from {start:g} to {end:g} of training: it needs 0 <= start < end < 1, so that training ends with masks that stand still"
            )
        if not 0 < every <= end - start + 1e-9:
            raise RecipeError(f"every is {every:g}; it is the share of training between two prunings, above 0 and at most end - start = {end - start:g}")
        for name, value, choices in (("scope", scope, ("layer", "global")), ("saliency", saliency, ("magnitude", "movement"))):
            if value not in choices:
                raise RecipeError(f"no {name} {value!r} for prune.gradual: take {' or '.join(choices)}")
        self.target = goal(target, "prune.gradual")
        self.start, self.end, self.every = start, end, every
        self.scope: Scope = scope
        self.saliency: Judge = saliency
        self.layers, self.spare = layers, spare or []

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        if any(True for _ in masked(model)):
            raise MismatchError("the model is prepared for gradual pruning already: train it, then prune.finish")
        weights = prunable(model, self.layers, self.spare, biases=False)
        said = _left_out(model, weights, named=self.layers is not None)
        if not weights:
            raise MismatchError(f"nothing is left to prune: {said[0]}")
        sizes = {name: weight.numel() for name, weight in weights.items()}
        total = sum(sizes.values())
        left = weights_left(self.target, total, total)
        if left < len(sizes):
            raise RecipeError(f"the target leaves {left} weights to {len(sizes)} layers, which keep one each: {{keep: {len(sizes)}}} is the least")
        ratio = self.target.ratio if isinstance(self.target, Ratio) else 1 - left / total
        rise = Rise(ratio, self.start, self.end, self.every)
        record = {
            "parameters": list(sizes), "ratio": rise.ratio, "start": rise.start, "end": rise.end, "every": rise.every, "scope": self.scope,
            "saliency": self.saliency,
        }  # fmt: skip
        attach(model, record)
        plan = f"{total - left:,} of {total:,} weights become zero between {rise.start:.0%} and {rise.end:.0%} of training, in {rise.prunings} prunings by "
        return Operated(model, record, layers=[{"name": name, "weights": size} for name, size in sizes.items()], said=[plan + self.saliency, *said])

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        recorded(model, record)
        attach(model, record)
        return model

    @staticmethod
    def settled(record: Mapping[str, Any], epochs: int) -> int:
        """Return the first epoch, counted from 1, at whose end the masks stand still: no earlier one is of a model that was asked for.

        >>> Gradual.settled({"end": 0.75}, 10), Gradual.settled({"end": 0.5}, 10)
        (8, 6)
        """
        return math.floor(record["end"] * epochs + 1e-9) + 1


def _left_out(model: nn.Module, weights: dict[str, nn.Parameter], *, named: bool) -> list[str]:
    """Take those away that no mask can be put on, and say of each why; refuse them where layers were named."""
    said: list[str] = []
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in module.named_parameters(recurse=False):
            owners.setdefault(id(value), []).append((f"{path}.{name}" if path else name, module))
        if parametrize.is_parametrized(module) and not named:
            said.append(f"{path or 'the model'} is not pruned: its weights are computed of others, by a parametrization of its own")
    for name, weight in list(weights.items()):
        (_, module), *others = sorted(owners[id(weight)], key=lambda one: one[0] != name)
        tied = [other for other, owner in others if owner is not module]
        why = f"it is the same weight as {tied[0]!r}, and a mask would part them" if tied else ""
        why = "a recurrent layer reads its weights past any mask" if isinstance(module, nn.RNNBase) else why
        if why and named:
            raise MismatchError(f"{name!r} cannot be pruned gradually: {why}; leave it out (spare)")
        if why:
            said.append(f"{name} is not pruned: {why}")
            del weights[name]
    return said
