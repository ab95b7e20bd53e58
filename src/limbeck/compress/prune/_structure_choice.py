"""Which units go, when so many are to go.

Shapes: U units of a family.
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ._groups import Family

__all__ = ["Chooser", "Scope"]

Scope = Literal["global", "local", "isomorphic"]
"""Which units are ranked among themselves: all; those of one family; those of families that are built alike."""


class Chooser:
    """Ranks units in pools and says which go at each of `steps`: of every pool the same share, its lowest first.

    Isomorphic pools: Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv:2407.04616. Of each family the highest stay whatever happens, at
    least so many that `least` channels do.
    """

    def __init__(self, judged: Sequence[tuple[Family, Tensor]], scope: Scope, least: int) -> None:
        self.families = [family for family, _ in judged]
        self.units = sum(family.units for family in self.families)
        pools: dict[object, list[tuple[float, int, int]]] = {}
        sizes: dict[object, int] = {}
        self._ranks = [scores.argsort(stable=True) for _, scores in judged]
        for at, (family, scores) in enumerate(judged):
            key = {"global": None, "local": at, "isomorphic": family.kinds}[scope]
            able = self._ranks[at][: max(0, family.units - math.ceil(least / family.width))].tolist()
            sizes[key] = sizes.get(key, 0) + family.units
            pools.setdefault(key, []).extend((float(scores[unit]), at, unit) for unit in able)
        self._pools = [(sizes[key], sorted(pool)) for key, pool in pools.items()]
        self._cuts = sorted({(k + 1) / size for size, pool in self._pools for k in range(len(pool))})
        self.steps = len(self._cuts)

    def at(self, step: int, round_to: int) -> list[tuple[Family, Tensor]]:
        """Return the units `[R]` of each family that go at a step, 0 to `steps`.

        So many come back, the highest first, that a multiple of `round_to` channels stays, or all.
        """
        gone = [0] * len(self.families)
        for size, pool in self._pools:
            share = self._cuts[step - 1] if step else 0.0
            for _, at, _ in pool[: int(share * size + 1e-9)]:
                gone[at] += 1
        found: list[tuple[Family, Tensor]] = []
        for family, ranks, count in zip(self.families, self._ranks, gone, strict=True):
            multiple = round_to // math.gcd(round_to, family.width)
            left = min(family.units, math.ceil((family.units - count) / multiple) * multiple)
            found.append((family, ranks[: family.units - left].sort().values))
        return found
