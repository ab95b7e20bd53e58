"""Neurons: hidden units of perceptrons go, and nothing else changes its size."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from limbeck.bridges.torch_pruning import couplings
from limbeck.compress._method import Bench, Operated, Surgery

from ._budget import Target
from ._groups import Family, families
from ._shapes import rebuilt
from ._structure import RoundTo, asking, operated, plan, unskipped
from ._structure_choice import Scope
from ._structure_scores import Normalize, Weighed

__all__ = ["Neurons"]


class Neurons(Surgery):
    """Take away hidden units between linear layers: of a perceptron, of the head of a convolutional network, of the perceptron in a transformer's block.

    A hidden unit is what one linear layer gives and linear layers alone read: rows of the first, columns of the others, and what a norm between them has for
    it. The width of a residual stream, heads of attention and recurrent states are none. Otherwise as prune.channels.

    Args:
        target: one goal: {ratio: 0.5}, the share of units that goes; {macs: 0.25}, {parameters: 0.25}, {bytes: 0.25} or {latency: 0.5}, the share that stays.
        saliency: what units are judged by: a name, or {kind: taylor, examples: 500}.
        scope: rank all units together, those of each layer (local), or those of layers that are built alike (isomorphic).
        normalize: what the scores of a layer are divided by before they compare with another's: their mean, their max, or none.
        weighed: judge by all weights that go with a unit, by those of linear layers (matrices), or by those alone that make it (filters).
        skip: layers, by module path, that keep all their units.
        least: units that every layer keeps.
        round_to: units left are a multiple of this; auto is 1, and for latency the fastest of 4, 8 and 16 on this machine, measured.

    Raises:
        RecipeError: a target of none or several goals, a share outside (0, 1), one that cannot be reached, a layer that is not there.
        MismatchError: a model without hidden units; a layer at which the pruned model fails or computes something else; a tied weight.
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
        skip: tuple[str, ...] = (),
        least: int = 2,
        round_to: RoundTo = "auto",
    ) -> None:
        self.skip = skip
        self.plan = plan(
            "prune.neurons",
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
        found, _ = families(model, couplings(model, ask))
        return operated(model, unskipped(model, [family for family in found if _hidden(model, family)], self.skip), {}, ask, bench, self.plan)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        return rebuilt(model, record["layers"])


_BETWEEN = (nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def _hidden(model: nn.Module, family: Family) -> bool:
    """Whether units are given by one linear layer, which does not read them itself, and read by linear layers."""
    ports = {port: None if port.side == "parameter" else model.get_submodule(port.path) for port in family.places}
    reads = [port.path for port in ports if port.side == "in"]
    known = all(isinstance(module, nn.Linear if port.side in ("in", "out") else _BETWEEN) for port, module in ports.items())
    return known and len(family.gives) == 1 and bool(reads) and family.name not in reads
