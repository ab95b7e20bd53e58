"""torch-pruning: which channels of which layers hang together.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, MissingDependency

__all__ = ["Coupling", "Port", "couplings"]

Ask = Callable[[nn.Module], Sequence[Tensor]]
"""Runs a model and returns what it answers."""


class Port(NamedTuple):
    """One side of a layer that has channels: what it gives (`out`), what it reads (`in`), or both at once (`through`: a norm, a depthwise convolution).

    `path` is the layer's; of a bare `parameter`, that is added to channels or put beside them, its own name.
    """

    path: str
    side: str


@dataclass
class Coupling:
    """Channels that can only go together.

    `places`: which channels of which ports; `fixed`: why they must stay, empty where they need not.
    """

    places: list[tuple[Port, int]] = field(default_factory=list)
    fixed: str = ""


def couplings(model: nn.Module, ask: Ask) -> list[Coupling]:
    """Return what hangs together of the outputs of all convolutions, linear layers and embeddings that `ask` runs; the model stays as it was.

    Raises:
        MissingDependency: torch-pruning is not installed.
        MismatchError: a model in which it loses its way.
    """
    library = _library()
    traced = copy.deepcopy(model).requires_grad_(True)
    try:
        with torch.enable_grad():
            graph = library.DependencyGraph().build_dependency(traced, {}, forward_fn=partial(_answers, ask), verbose=False)
    except TypeError as error:  # channels that it cannot count, such as those that rotary positions divide
        raise MismatchError(
            f"torch-pruning cannot follow the channels of {type(model).__name__} ({error}): a language model is made narrower by prune.width, and less deep by "
            "prune.layers"
        ) from None
    _correct(graph, library)
    names = {module: path for path, module in traced.named_modules()}
    parameters = {id(parameter): name for name, parameter in traced.named_parameters()}
    roots = [graph.module2node[module] for module in traced.modules() if module in graph.module2node and isinstance(module, _ROOTS)]
    places, pairs = _followed(graph, library, roots)
    ends = np.array(pairs, int).reshape(-1, 2)
    labels = connected_components(coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (len(places), len(places))), directed=False)[1]
    found: dict[int, Coupling] = {}
    for (node, side, at), label in zip(places, labels.tolist(), strict=True):
        coupling = found.setdefault(label, Coupling())
        coupling.fixed = coupling.fixed or _fixed(library, node, at, names)
        if node.type == library.ops.OPTYPE.PARAMETER:
            coupling.places.append((Port(parameters[id(node.module)], "parameter"), at))
        elif node.module in names:
            coupling.places.append((Port(names[node.module], side), at))
    return list(found.values())


_ROOTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding)

_Place = tuple[Any, str, int]
"""A node of the graph, one of its sides, and a channel of it."""


def _answers(ask: Ask, model: nn.Module, _inputs: Mapping[str, Any]) -> list[Tensor]:
    """What the model answers, each behind an operation of its own: so the end of the graph is no layer."""
    return [answer * 1 for answer in ask(model)]


def _followed(graph: Any, library: ModuleType, roots: Sequence[Any]) -> tuple[list[_Place], list[tuple[int, int]]]:
    """Follow the roots' output channels along the graph's dependencies; return all places that they come to, and pairs of those that a dependency ties.

    The library's own groups keep one way to each channel, and so lose that two channels of one layer hang together.
    """
    numbers: dict[_Place, int] = {}
    pairs: list[tuple[int, int]] = []
    waiting: list[tuple[Any, str, list[int]]] = []

    def arrive(node: Any, side: str, channels: Sequence[int]) -> None:
        new = [channel for channel in dict.fromkeys(channels) if (node, side, channel) not in numbers]
        for channel in new:
            numbers[node, side, channel] = len(numbers)
        if new:
            waiting.append((node, side, new))

    for root in roots:
        arrive(root, _side(graph, root, graph.get_pruner_of_module(root.module).prune_out_channels), range(graph.get_out_channels(root)))
    while waiting:
        node, side, channels = waiting.pop()
        for dependency in node.dependencies:
            if _side(graph, node, dependency.trigger) != side:
                continue
            ways = [library._helpers._HybridIndex(idx=channel, root_idx=channel) for channel in channels]
            for mapping in dependency.index_mapping:
                ways = ways if mapping is None else mapping(ways)
            ways = [way for way in ways if way.root_idx is not None]
            other = _side(graph, dependency.target, dependency.handler)
            arrive(dependency.target, other, [way.idx for way in ways])
            pairs += [(numbers[node, side, way.root_idx], numbers[dependency.target, other, way.idx]) for way in ways]
    return list(numbers), pairs


def _fixed(library: ModuleType, node: Any, at: int, names: Mapping[nn.Module, str]) -> str:
    """Why a channel must stay because it comes to a node; empty where it need not."""
    module, kinds = node.module, library.ops.OPTYPE
    if node.type == kinds.OUTPUT:
        return "it is what the model answers"
    if isinstance(module, _Padded) and not module.before <= at < module.before + module.width:
        return f"a shortcut adds {module.before + module.behind} channels of zeros there"
    if node.type in (kinds.MHA, kinds.LSTM, kinds.EXPAND) or _gathers(module):
        if node.type == kinds.EXPAND and len(node.grad_fn._saved_self_sym_sizes) != 5:
            return ""
        return f"its channels run through {names.get(module, 'an expansion')} ({type(module).__name__}), which cannot be cut"
    return ""


def _gathers(module: nn.Module) -> bool:
    """Whether a convolution has one output for each group of several inputs; the graph takes it for a depthwise one."""
    return isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.out_channels != module.in_channels


def _side(graph: Any, node: Any, pruning: Any) -> str:
    """Which side of a node a pruning function of the library cuts."""
    pruner = graph.get_pruner_of_module(node.module)
    if pruner.prune_out_channels == pruner.prune_in_channels:
        return "through"
    return "out" if pruning == pruner.prune_out_channels else "in"


class _Padded(nn.Module):
    """In the graph's nodes, what adds channels of zeros: `before` and behind those that it is given, `width` of them."""

    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        self.before, self.behind, self.width = before, behind, 0


def _correct(graph: Any, library: ModuleType) -> None:
    """Teach the graph what it takes for operations that keep channels in place: padding by channels of zeros, and flattening beside linear layers on tokens."""
    padded = [node for node in graph.module2node.values() if _pads_channels(node)]
    infer = library.dependency.shape_infer

    class Pruner(library.ops.DummyPruner):
        def get_out_channels(self, layer: _Padded) -> int:
            return layer.before + layer.width + layer.behind

    graph.register_customized_layer(_Padded, Pruner())
    for node in padded:
        node.module = _Padded(*node.grad_fn._saved_pad[4:])
    for _ in padded:  # one may stand behind another: after k rounds, the first k of a chain are right
        for node in padded:
            node.module.width = infer.infer_out_channels_recursively(graph, node.inputs[0], [0]) or 0
    for node in graph.module2node.values() if padded else ():
        for dependency in node.dependencies:  # they were found with wrong widths, and are found again
            dependency.index_mapping = [None, None]
    for node in padded:
        _map(node, 1, partial(_moved, node.module.before, node.module.before + node.module.width), partial(_moved, -node.module.before, node.module.width))
    for node in graph.module2node.values():
        if node.type == library.ops.OPTYPE.RESHAPE and (stride := _flattened(graph, infer, node)) > 1:
            mapping = library.dependency.index_mapping._FlattenIndexMapping
            _map(node, 0, mapping(stride=stride), mapping(stride=stride, reverse=True))
    library.dependency.index_mapping.update_index_mapping(graph)


def _pads_channels(node: Any) -> bool:
    """Whether a node adds channels of zeros to maps `[N, C, H, W]`."""
    if not node.inputs or node.grad_fn is None or node.grad_fn.name() != "ConstantPadNdBackward0":
        return False
    pad = node.grad_fn._saved_pad
    return len(pad) == 6 and any(pad[4:])


def _flattened(graph: Any, infer: Any, node: Any) -> int:
    """How many features a reshape of `[N, C, ...]` to `[N, -1]` makes of a channel; 1 of another reshape."""
    if not node.inputs or node.grad_fn.name() not in ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"):
        return 1
    size = node.grad_fn._saved_self_sym_sizes
    if len(size) < 3:
        return 1
    whole, features = infer.infer_out_channels_recursively(graph, node.inputs[0], [0]), infer.infer_in_channels_recursively(graph, node, [0])
    return math.prod(size[2:]) if whole == size[1] and features == math.prod(size[1:]) else 1


def _map(node: Any, slot: int, onward: Callable[..., Any], back: Callable[..., Any]) -> None:
    """Have channels change their places between what a node is given and the node itself."""
    for inner in node.inputs:
        for dependency in inner.dependencies:
            if dependency.target is node:
                dependency.index_mapping[slot] = onward
        for dependency in node.dependencies:
            if dependency.target is inner:
                dependency.index_mapping[slot] = back


def _moved(by: int, high: int, indices: Sequence[Any]) -> list[Any]:
    return [one._replace(idx=one.idx + by) for one in indices if 0 <= one.idx + by < high]


def _library() -> ModuleType:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise
        raise MissingDependency("torch-pruning", "prune", "pruning channels") from None
    return torch_pruning
