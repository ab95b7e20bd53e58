"""A network of quadratic polynomials in pairs: what it computes, and how it is written down.

Shapes: N rows, F inputs, U units of a layer. Nodes are numbered through: inputs 0 .. F-1, then the units, layer by layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import ArtifactError

__all__ = ["TERMS", "Layer", "Network", "pruned", "terms"]

Numbers = npt.NDArray[np.float64]
TERMS = 6


def terms(a: Numbers, b: Numbers) -> Numbers:
    """Return the terms of Ivakhnenko's polynomial, `1, a, b, a^2, b^2, ab`, along a last axis of 6."""
    return np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=-1)


@dataclass(frozen=True)
class Layer:
    """Units side by side: which two nodes each reads `[U, 2]`, and its coefficients `[U, 6]`."""

    pairs: npt.NDArray[np.int64]
    coefficients: Numbers

    def __call__(self, nodes: Numbers, bounds: tuple[float, float]) -> Numbers:
        """Nodes so far `[N, K]` to what the units say, held within bounds, `[N, U]`."""
        return np.clip(np.einsum("nut,ut->nu", terms(nodes[:, self.pairs[:, 0]], nodes[:, self.pairs[:, 1]]), self.coefficients), *bounds)


@dataclass(frozen=True)
class Network:
    """Layers of units over standardised inputs `(x - center) / scale`, the last of which answers, in the target's standard deviations about its mean.

    `bounds`: what a unit's answer is held within, so that polynomials of a high degree do not run away. Without a layer it answers the mean.
    """

    center: Numbers
    scale: Numbers
    layers: tuple[Layer, ...]
    bounds: tuple[float, float]
    mean: float
    deviation: float

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        """Which inputs are read at all, in order."""
        read = {int(node) for layer in self.layers for node in layer.pairs.flat}
        return np.array(sorted(node for node in read if node < len(self.center)), dtype=np.int64)

    @property
    def units(self) -> int:
        return sum(len(layer.pairs) for layer in self.layers)

    def __call__(self, rows: Numbers) -> Numbers:
        """Rows `[N, F]` to answers `[N]`."""
        if not self.layers:
            return np.full(len(rows), self.mean)
        nodes = (rows - self.center) / self.scale
        for layer in self.layers:
            nodes = np.concatenate([nodes, layer(nodes, self.bounds)], axis=1)
        return self.mean + self.deviation * nodes[:, -1]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able values, exactly."""
        finite = bool(np.isfinite(self.bounds).all())
        return {
            "center": self.center.tolist(), "scale": self.scale.tolist(), "bounds": [float(value) for value in self.bounds] if finite else None,
            "mean": self.mean, "deviation": self.deviation,
            "layers": [{"pairs": layer.pairs.tolist(), "coefficients": layer.coefficients.tolist()} for layer in self.layers],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, told: Any) -> "Network":
        """Return what `to_dict` wrote.

        Raises:
            ArtifactError: what is no such network: a piece is missing, of another size, not finite, or reads what comes after it.
        """
        try:
            center, scale = _row(told["center"]), _row(told["scale"])
            bounds = (-np.inf, np.inf) if told["bounds"] is None else (float(told["bounds"][0]), float(told["bounds"][1]))
            layers = tuple(Layer(np.asarray(one["pairs"], dtype=np.int64), np.asarray(one["coefficients"], dtype=np.float64)) for one in told["layers"])
            made = cls(center, scale, layers, bounds, float(told["mean"]), float(told["deviation"]))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"this is no GMDH network ({type(error).__name__}: {' '.join(str(error).split())}): write it again by to_dict") from None
        made._check()
        return made

    def _check(self) -> None:
        known = len(self.center)
        sound = len(self.scale) == known and known > 0 and bool((self.scale > 0).all()) and self.bounds[0] <= self.bounds[1]
        sound = sound and bool(np.isfinite([*self.center, *self.scale, self.mean, self.deviation]).all())
        for layer in self.layers:
            units = len(layer.pairs)
            sound = sound and units > 0 and layer.pairs.shape == (units, 2) and layer.coefficients.shape == (units, TERMS)
            sound = sound and bool(np.isfinite(layer.coefficients).all()) and int(layer.pairs.min()) >= 0 and int(layer.pairs.max()) < known
            known += units
        if not sound:
            raise ArtifactError(
                "this is no GMDH network: a piece of it is of another size, not finite, or reads what comes after it; write it again by to_dict"
            )


def _row(told: Any) -> Numbers:
    made = np.asarray(told, dtype=np.float64)
    if made.ndim != 1:
        raise ValueError(f"{list(made.shape)} is no row of numbers")
    return made


def pruned(layers: Sequence[Layer], features: int) -> tuple[Layer, ...]:
    """Return layers with only the units that the last unit of the last layer uses, numbered anew."""
    starts = np.cumsum([features, *(len(layer.pairs) for layer in layers)])
    used: set[int] = {int(starts[-1]) - 1}
    for layer, start in zip(reversed(layers), reversed(starts[:-1]), strict=True):
        used |= {int(node) for at, pair in enumerate(layer.pairs) if start + at in used for node in pair}
    place: Mapping[int, int] = {node: at for at, node in enumerate([*range(features), *sorted(node for node in used if node >= features)])}
    kept: list[Layer] = []
    for layer, start in zip(layers, starts[:-1], strict=True):
        rows = [at for at in range(len(layer.pairs)) if start + at in used]
        pairs = np.array([[place[int(node)] for node in layer.pairs[at]] for at in rows], dtype=np.int64)
        kept.append(Layer(pairs, layer.coefficients[rows]))
    return tuple(kept)
