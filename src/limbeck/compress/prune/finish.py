"""The end of gradual pruning: plain weights with exact zeros, which stay zero when they are trained on."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from limbeck.compress._method import Bench, Held, Operated
from limbeck.compress._plain import plain
from limbeck.core.errors import MismatchError

from ._mask import hold_zeros, record_of, recorded, still_there
from ._schedule import masked

__all__ = ["Finish"]


class Finish(Held):
    """Make plain weights, zeros and all, of a model that `prune.gradual` prepared and a stage has trained since.

    The masks and scores are gone, the model's structure is what it was before it was prepared, and a stage that trains it on keeps its zeros.

    Raises:
        MismatchError: a model without masks, or whose training stopped before the schedule's end.
    """

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        found = dict(masked(model))
        if not found:
            raise MismatchError("there is nothing to finish: the model has no masks; prepare it by prune.gradual, then train it by a stage with init")
        pruner = next(iter(found.values())).pruner
        done, planned = int(pruner.done), pruner.rise.prunings
        if done < planned:
            raise MismatchError(
                f"training stopped after {done} of {planned} prunings, at a sparsity of {pruner.rise.at(done):.1%} and not {pruner.rise.ratio:.1%}: "
                "take the last epoch (select: last, no early_stopping), or let the pruning end earlier"
            )
        made = plain(model)
        weights = {name: made.get_parameter(name) for name in found}
        layers = [{"name": name, "weights": weight.numel(), "left": int(weight.count_nonzero())} for name, weight in weights.items()]
        left, total = sum(row["left"] for row in layers), sum(row["weights"] for row in layers)
        return Operated(made, record_of(weights), {"weights_left": left, "sparsity": 1 - left / total}, layers)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model without masks, where it has some: its zeros are in its weights."""
        made = plain(model)
        recorded(made, record)
        return made

    @staticmethod
    def hold(model: nn.Module, record: Mapping[str, Any]) -> None:
        """Give every pruned weight's zeros a gradient of zero."""
        hold_zeros(still_there(model, record))
