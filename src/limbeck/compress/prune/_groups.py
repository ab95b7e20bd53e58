"""Families of units: channels that go together, and the units that are alike.

A unit is what can only go as one: the channel that a layer gives, with the columns of all that read it, and whatever a residual sum ties it to. Units that
touch the same places, each as often, are a family: the channels of one layer, or of all layers that add to one stream.
Shapes: U units of a family, n places of a unit in a port.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from limbeck.bridges.torch_pruning import Coupling, Port
from limbeck.core.errors import MismatchError

from ._shapes import by_channel, channels_of, tensors_of

__all__ = ["Family", "attentions", "check_groups", "families", "keeps"]


@dataclass(frozen=True, eq=False)
class Family:
    """Units of one kind: `places` says for each port which of its channels each unit has, `[U, n]`; `kinds` are the ports' layer types, in order.

    `gives`: the layers whose outputs these are, in order: the first names the family.
    """

    places: Mapping[Port, Tensor]
    gives: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return self.gives[0]

    @cached_property
    def units(self) -> int:
        return len(next(iter(self.places.values())))

    @cached_property
    def width(self) -> int:
        """How many channels of the layer that names the family a unit has: one, and of a layer that works in groups one of each."""
        return next(places.shape[1] for port, places in self.places.items() if port.path == self.name and port.side != "in")


def families(model: nn.Module, found: Sequence[Coupling]) -> tuple[list[Family], dict[str, str]]:
    """Return the families of a model's channels, in the order of its layers, and for every layer of which some or all channels must stay, why."""
    ports = dict.fromkeys(port for coupling in found for port, _ in coupling.places)
    known = {port: channels_of(model, port) for port in ports if port.side == "parameter" or tensors_of(model.get_submodule(port.path), port.side) is not None}
    homes = {place: number for number, coupling in enumerate(found) for place in coupling.places}
    ties = [(homes[one], homes[other]) for port in known for one, other in _inner(model, port, known) if one in homes and other in homes]
    ends = np.array(ties, int).reshape(-1, 2)
    labels = connected_components(coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (len(found), len(found))), directed=False)[1]
    units: dict[int, dict[Port, list[int]]] = {}
    reasons: dict[int, str] = {}
    heads = {port: name for name, inner in attentions(model).items() for port in inner}
    for coupling, label in zip(found, labels.tolist(), strict=True):
        for port, at in coupling.places:
            if not _has_one(model, port):
                units.setdefault(label, {}).setdefault(port, []).append(at)
        why = coupling.fixed or next((why for place in coupling.places if (why := _stays(model, place, known, heads))), "")
        reasons |= {label: why} if why else {}
    order = {path: rank for rank, (path, _) in enumerate(model.named_modules())}
    alike: dict[tuple[tuple[Port, int], ...], list[dict[Port, list[int]]]] = {}
    whole: dict[str, str] = {}
    for label, unit in units.items():
        if label in reasons:
            whole |= dict.fromkeys(_givers(model, list(unit)), reasons[label])
        else:
            alike.setdefault(tuple(sorted((port, len(places)) for port, places in unit.items())), []).append(unit)
    made = [_family(model, {port: torch.tensor([sorted(unit[port]) for unit in members]) for port, _ in key}, order) for key, members in alike.items()]
    return sorted(made, key=lambda family: order[family.name]), dict(sorted(whole.items(), key=lambda one: order[one[0]]))


_Tie = tuple[tuple[Port, int], tuple[Port, int]]


def _inner(model: nn.Module, port: Port, known: Mapping[Port, int]) -> list[_Tie]:
    """Pairs of places that go together because a layer works in groups: a channel of each group, so that groups stay of one size."""
    module = None if port.side == "parameter" else model.get_submodule(port.path)
    if isinstance(module, nn.modules.conv._ConvNd) and port.side != "through" and module.groups > 1:
        if by_channel(module):
            many = module.out_channels // module.in_channels
            return [((port, at), (Port(port.path, "in"), at // many)) for at in range(known[port])] if port.side == "out" else []
        groups = module.groups
    elif isinstance(module, nn.GroupNorm):
        groups = module.num_groups
    else:
        return []
    size = known[port] // groups
    return [((port, at), (port, at % size)) for at in range(size, known[port])]


def _stays(model: nn.Module, place: tuple[Port, int], known: Mapping[Port, int], heads: Mapping[Port, str]) -> str:
    """Why a channel must stay because of the layer in which it lies; empty where it need not."""
    port, at = place
    if port in heads:
        return f"its units are those of the heads of {heads[port]}: prune.heads takes them"
    if port not in known:
        return f"its channels run through {port.path} ({type(model.get_submodule(port.path)).__name__}), whose sizes are not known to pruning"
    return f"its channels cannot be followed to {port.path}, which has {known[port]}" if at >= known[port] and not _has_one(model, port) else ""


def _has_one(model: nn.Module, port: Port) -> bool:
    """Whether a layer has one number for all channels, which pruning leaves alone."""
    return port.side == "through" and isinstance(module := model.get_submodule(port.path), nn.PReLU) and module.num_parameters == 1


def attentions(model: nn.Module) -> dict[str, tuple[Port, ...]]:
    """Return path -> the inner ports of every attention that is written in the open: `heads`, and linear layers `query`, `key`, `value` and `out`."""
    names = ("query", "key", "value", "out")
    return {
        path: tuple(Port(f"{path}.{name}".removeprefix("."), "in" if name == "out" else "out") for name in names)
        for path, module in model.named_modules()
        if type(vars(module).get("heads")) is int and all(isinstance(module._modules.get(name), nn.Linear) for name in names)
    }


def _givers(model: nn.Module, ports: Sequence[Port]) -> list[str]:
    """The layers among ports whose outputs they are; norms and depthwise convolutions only hand on."""
    kinds = {"out": (nn.Linear, nn.modules.conv._ConvNd), "through": nn.Embedding}
    return [port.path for port in ports if port.side in kinds and isinstance(model.get_submodule(port.path), kinds[port.side])]


def _family(model: nn.Module, places: dict[Port, Tensor], order: Mapping[str, int]) -> Family:
    first = sorted(places, key=lambda port: (order.get(port.path, -1), port.side))
    by = places[next(port for port in first if port.side != "in" and port.side != "parameter")][:, 0].argsort()
    gives = _givers(model, first) or [port.path for port in first if port.side == "through"]
    kinds = tuple(sorted(("parameter" if port.side == "parameter" else type(model.get_submodule(port.path)).__name__, port.side) for port in first))
    return Family({port: places[port][by] for port in first}, tuple(gives), kinds)


def check_groups(model: nn.Module, family: Family) -> None:
    """Refuse a unit of all channels that grouped layers have made.

    Raises:
        MismatchError: the layers, named.
    """
    if family.units > 1:
        return
    grouped = {
        port.path: module.groups if isinstance(module, nn.modules.conv._ConvNd) else module.num_groups
        for port in family.places
        if port.side != "parameter" and isinstance(module := model.get_submodule(port.path), (nn.modules.conv._ConvNd, nn.GroupNorm))
        and (module.num_groups if isinstance(module, nn.GroupNorm) else 1 if port.side == "through" else module.groups) > 1
    }  # fmt: skip
    widest = max(places.shape[1] for places in family.places.values())
    if grouped and widest > 1:
        told = " and ".join(f"the {groups} groups of {path!r}" for path, groups in grouped.items())
        raise MismatchError(
            f"no channel of {family.name!r} can go without all {widest} of them: {told} tie them together and would not divide otherwise; "
            f"leave it whole (skip: [{family.name}]), or give the layers groups that divide each other"
        )


def keeps(model: nn.Module, removed: Sequence[tuple[Family, Tensor]]) -> dict[Port, Tensor]:
    """Return for each port that loses channels the places that stay, in order; `removed` are units `[R]` of families."""
    gone: dict[Port, list[Tensor]] = {}
    for family, units in removed:
        for port, places in family.places.items() if len(units) else ():
            gone.setdefault(port, []).append(places[units].flatten())
    kept: dict[Port, Tensor] = {}
    for port, places in gone.items():
        stays = torch.ones(channels_of(model, port), dtype=torch.bool)
        stays[torch.cat(places)] = False
        kept[port] = stays.nonzero()[:, 0]
    return kept
