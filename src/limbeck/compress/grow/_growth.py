"""How the network grows: every pair is fitted, rows that none was fitted on judge, the useless are dropped, and growth ends when it helps no more.

Shapes: M rows to fit on, V rows to judge by, F inputs, P pairs, K nodes so far.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ._network import TERMS, Layer, Network, pruned, terms

__all__ = ["Growth", "Limits", "grow", "refitted", "solve"]

Numbers = npt.NDArray[np.float64]
_AT_ONCE = 4_000_000
"""Numbers of a design that are held at once."""
_RANK = 1e-10
"""Directions of a design below this share of its largest singular value are none."""
_NOTHING = 1e-12
"""A gain below this share of the target's variance is rounding."""


@dataclass(frozen=True)
class Limits:
    """How many units a layer keeps, how many layers there may be, and by what share a layer must better the criterion."""

    units: int
    depth: int
    gain: float
    rejoin: bool
    margin: float | None


@dataclass(frozen=True)
class Growth:
    """What grew, and the criterion of each depth, from none on: the mean squared error on the judging rows."""

    network: Network
    criterion: tuple[float, ...]


def solve(design: Numbers, target: Numbers) -> Numbers:
    """Return the least-squares coefficients `[P, 6]` of designs `[P, M, 6]`, the shortest where several fit alike."""
    q, r = np.linalg.qr(design)
    return np.einsum("ptm,pm->pt", np.linalg.pinv(r, rcond=_RANK), np.einsum("pmt,m->pt", q, target))


def grow(fitting: tuple[Numbers, Numbers], judging: tuple[Numbers, Numbers], limits: Limits) -> Growth:
    """Grow a network on rows `[M, F]` and numbers `[M]`, judged by rows `[V, F]` and numbers `[V]`.

    A layer fits Ivakhnenko's polynomial to every pair of what the last layer kept (and, with `rejoin`, to every pair of one of these and an input). Of its
    units those are kept that err less on the judging rows than either of what they read, the best `units` of them. The network is the best unit of the layer
    after which no other is better by the share `gain`, with what it reads.
    """
    (rows, y), (asked, told) = fitting, judging
    center, deviations = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(deviations > 1e-12 * np.maximum(1e-300, np.abs(rows).max(axis=0)), deviations, 1.0)
    mean, deviation = float(y.mean()), float(y.std())
    deviation = deviation if deviation > 1e-12 * float(np.abs(y).max()) else 0.0
    target, truth = ((y - mean) / (deviation or 1.0), (told - mean) / (deviation or 1.0))
    nodes, seen = (rows - center) / scale, (asked - center) / scale
    features, floor = rows.shape[1], float(np.square(truth).mean())
    bounds = _bounds(target, limits.margin)
    errors, criterion, layers = np.full(features, floor), [floor], list[Layer]()
    sources = np.array([feature for feature in range(features) if deviations[feature] > 0], dtype=np.int64)
    while deviation and len(sources) and len(layers) < limits.depth:
        pairs = _pairs(sources, features if layers and limits.rejoin else 0, first=not layers)
        made, found = _fit(nodes, seen, pairs, target, truth, bounds)
        useful = np.nonzero(found < errors[pairs].min(axis=1))[0]
        kept = useful[np.argsort(found[useful], kind="stable")][: limits.units]
        if not len(kept) or criterion[-1] - found[kept[0]] <= limits.gain * criterion[-1] + _NOTHING * floor:
            break
        kept = kept[::-1]  # the best comes last: it answers
        layer = Layer(pairs[kept], made[kept])
        sources = np.arange(nodes.shape[1], nodes.shape[1] + len(kept))
        nodes, seen = (np.concatenate([held, layer(held, bounds)], axis=1) for held in (nodes, seen))
        errors = np.concatenate([errors, found[kept]])
        criterion.append(float(found[kept[-1]]))
        layers.append(layer)
    network = Network(center, scale, pruned(layers, features) if layers else (), bounds, mean, deviation)
    return Growth(network, tuple(value * (deviation or 1.0) ** 2 for value in criterion))


def refitted(network: Network, rows: Numbers, y: Numbers) -> Network:
    """Return the same network with every unit's coefficients fitted to other rows, layer by layer."""
    nodes, target, layers = (rows - network.center) / network.scale, (y - network.mean) / (network.deviation or 1.0), list[Layer]()
    for layer in network.layers:
        design = terms(nodes[:, layer.pairs[:, 0]], nodes[:, layer.pairs[:, 1]]).transpose(1, 0, 2)
        layers.append(Layer(layer.pairs, solve(design, target)))
        nodes = np.concatenate([nodes, layers[-1](nodes, network.bounds)], axis=1)
    return Network(network.center, network.scale, tuple(layers), network.bounds, network.mean, network.deviation)


def _bounds(target: Numbers, margin: float | None) -> tuple[float, float]:
    low, high = float(target.min()), float(target.max())
    return (-np.inf, np.inf) if margin is None else (low - margin * (high - low), high + margin * (high - low))


def _pairs(sources: npt.NDArray[np.int64], inputs: int, *, first: bool) -> npt.NDArray[np.int64]:
    """Pairs of what the last layer kept, and of these with inputs; a single source is paired with itself in the first layer."""
    own = [(int(source), int(source)) for source in sources] if first and len(sources) == 1 else list(combinations(sources.tolist(), 2))
    mixed = [(int(source), feature) for source in sources for feature in range(inputs)]
    return np.array([*own, *mixed], dtype=np.int64).reshape(-1, 2)


def _fit(nodes: Numbers, seen: Numbers, pairs: npt.NDArray[np.int64], target: Numbers, truth: Numbers, bounds: tuple[float, float]) -> tuple[Numbers, Numbers]:
    """Coefficients `[P, 6]` of every pair on the fitting rows, and its mean squared error on the judging rows `[P]`."""
    made, found = np.zeros((len(pairs), TERMS)), np.zeros(len(pairs))
    for part in _parts(len(pairs), max(1, _AT_ONCE // (TERMS * (len(nodes) + len(seen))))):
        a, b = pairs[part].T
        made[part] = solve(terms(nodes[:, a], nodes[:, b]).transpose(1, 0, 2), target)
        said = np.clip(np.einsum("vpt,pt->vp", terms(seen[:, a], seen[:, b]), made[part]), *bounds)
        found[part] = np.square(said - truth[:, None]).mean(axis=0)
    return made, found


def _parts(count: int, size: int) -> Iterator[slice]:
    yield from (slice(start, start + size) for start in range(0, count, size))
