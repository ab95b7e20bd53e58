"""Channels: whole outputs of convolutions and linear layers go, with everything that hangs on them.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710; what hangs together is found as in Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023, arXiv:2301.12900.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from limbeck.bridges.torch_pruning import couplings
from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import RecipeError, did_you_mean

from ._budget import Target
from ._groups import Family, families
from ._shapes import rebuilt
from ._structure import RoundTo, asking, operated, plan, unskipped
from ._structure_choice import Scope
from ._structure_scores import Normalize, Weighed

__all__ = ["Channels"]

Only = Literal["all", "conv", "linear"]


class Channels(Surgery):
    """Take away output channels (of a convolution, its filters), and all that depends on them.

    That is their norms, the columns of what reads them, and whatever a residual sum, a concatenation, a flattening or a depthwise convolution ties to them.
    The units are ranked by a saliency, and as many go as it takes to meet the target. What stays are rows and columns of the given weights, untouched. What
    the model answers, and its input, are never cut; heads of attention are for prune.heads. Before anything is judged, and again at the end, the smaller
    model is run on two examples and must answer as the given one does without what went.

    Args:
        target: one goal: {ratio: 0.5}, the share of units that goes; {macs: 0.25}, {parameters: 0.25}, {bytes: 0.25} or {latency: 0.5}, the share that stays.
        saliency: what units are judged by: a name, or {kind: taylor, examples: 500}.
        scope: rank all units together, those of each layer (local), or those of layers that are built alike (isomorphic).
        normalize: what the scores of a layer are divided by before they compare with another's: their mean, their max, or none.
        weighed: judge by all weights that go with a unit, by those of convolutions and linear layers (matrices), or by those alone that make it (filters).
        only: prune all layers, convolutions alone (conv: the filters), or linear ones alone.
        skip: layers, by module path, that keep all their channels.
        least: channels that every layer keeps.
        round_to: channels left are a multiple of this; auto is 1, and for latency the fastest of 4, 8 and 16 on this machine, measured.

    Raises:
        RecipeError: a target of none or several goals, a share outside (0, 1), one that cannot be reached, a layer that is not there.
        MismatchError: nothing to prune; a layer at which the pruned model fails or computes something else; a tied weight; groups that do not divide.
        MissingDependency: torch-pruning is not installed.
    """

    def __init__(
        self,
        *,
        target: Target,
        saliency: str | dict[str, Any] = "magnitude",
        scope: Scope = "global",
        normalize: Normalize = "mean",
        weighed: Weighed = "all",
        only: Only = "all",
        skip: tuple[str, ...] = (),
        least: int = 2,
        round_to: RoundTo = "auto",
    ) -> None:
        if only not in _TYPES:
            raise RecipeError(f"no choice {only!r} for only of prune.channels{did_you_mean(only, _TYPES)}")
        self.only: Only = only
        self.skip = skip
        self.plan = plan(
            "prune.channels",
            target=target,
            saliency=saliency,
            scope=scope,
            normalize=normalize,
            weighed=weighed,
            least=least,
            round_to=round_to,
        )

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        ask = asking(bench)
        found, whole = families(model, couplings(model, ask))
        chosen = [family for family in unskipped(model, found, self.skip) if self._wanted(model, family)]
        return operated(model, chosen, whole, ask, bench, self.plan)

    def _wanted(self, model: nn.Module, family: Family) -> bool:
        return all(isinstance(model.get_submodule(path), _TYPES[self.only]) for path in family.gives)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        return rebuilt(model, record["layers"])


_TYPES: Mapping[str, type[nn.Module]] = {"all": nn.Module, "conv": nn.modules.conv._ConvNd, "linear": nn.Linear}
