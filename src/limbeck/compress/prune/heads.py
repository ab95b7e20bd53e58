"""Heads: whole heads of attention go.

Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, arXiv:1905.10650.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.bridges.torch_pruning import Port
from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError

from ._budget import Target
from ._groups import Family, attentions
from ._shapes import channels_of, rebuilt
from ._structure import asking, operated, plan, unskipped
from ._structure_choice import Scope
from ._structure_scores import Normalize, Weighed

__all__ = ["Heads"]


class Heads(Surgery):
    """Take away heads of attention: their rows of query, key and value, their columns of the output. The tokens keep their width, and heads theirs.

    Attention is known by its attribute `heads` and its linear layers `query`, `key`, `value` and `out`, head h having the h-th slice of each, as in
    models.vit. `nn.MultiheadAttention` cannot lose heads, since it wants the heads together as wide as its tokens.

    Args:
        target: one goal: {ratio: 0.5}, the share of heads that goes; {macs: 0.8}, {parameters: 0.8}, {bytes: 0.8} or {latency: 0.8}, the share that stays.
        saliency: what heads are judged by: a name, or {kind: taylor, examples: 500}.
        scope: rank all heads together, those of each layer (local), or those of layers that are built alike (isomorphic).
        normalize: what the scores of a layer are divided by before they compare with another's: their mean, their max, or none.
        weighed: judge by all weights of a head, without its biases (matrices), or without the columns that read it too (filters).
        skip: attentions, by module path, that keep all their heads.
        least: heads that every attention keeps.

    Raises:
        RecipeError: a target of none or several goals, a share outside (0, 1), one that cannot be reached, a layer that is not there.
        MismatchError: a model without such attention; a layer at which the pruned model fails or computes something else; a tied weight.
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
        least: int = 1,
    ) -> None:
        self.skip = skip
        self.plan = plan(
            "prune.heads",
            target=target,
            saliency=saliency,
            scope=scope,
            normalize=normalize,
            weighed=weighed,
            least=least,
            round_to=1,
        )

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        packed = [path for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
        found = [_family(model, path, inner) for path, inner in attentions(model).items()]
        if packed and not found:
            raise MismatchError(
                f"{packed[0]!r} is nn.MultiheadAttention, which wants its heads together as wide as its tokens and so cannot lose one: write attention with "
                "linear layers query, key, value and out, as models.vit does"
            )
        return operated(model, unskipped(model, found, self.skip), {}, asking(bench), bench, self.plan)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        return rebuilt(model, record["layers"])


def _family(model: nn.Module, path: str, inner: tuple[Port, ...]) -> Family:
    """The heads of one attention as units."""
    own = Port(path, "heads")
    heads = channels_of(model, own)
    places = {own: torch.arange(heads)[:, None]}
    for port in inner:
        wide = channels_of(model, port)
        if wide % heads:
            raise MismatchError(f"{path!r} has {heads} heads, and {port.path!r} {wide} channels, which they do not divide: its heads cannot be told apart")
        places[port] = torch.arange(wide).view(heads, -1)
    kinds = tuple((type(model.get_submodule(port.path)).__name__, port.side) for port in places)
    return Family(places, (path,), kinds)
