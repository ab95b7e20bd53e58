"""What the two estimators share: options, the rows that judge, and the way to a file and back.

Shapes: N rows, F inputs.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.bridges.sklearn_base import BaseEstimator, check_random_state
from limbeck.core.errors import ArtifactError, RecipeError

from ._growth import Growth, Limits, grow, refitted
from ._network import Network

__all__ = ["FORMAT", "LEAST", "Grown", "opened"]

FORMAT = 1
LEAST = 4
"""Rows below which there is nothing to fit and to judge."""
Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


class Grown(BaseEstimator):
    """The options of a network that grows."""

    n_features_in_: int

    def __init__(
        self,
        *,
        units: int = 8,
        depth: int = 10,
        validation: float = 0.3,
        gain: float = 0.01,
        rejoin: bool = True,
        refit: bool = True,
        margin: float | None = 0.1,
        random_state: Any = 0,
    ) -> None:
        self.units = units
        self.depth = depth
        self.validation = validation
        self.gain = gain
        self.rejoin = rejoin
        self.refit = refit
        self.margin = margin
        self.random_state = random_state

    def _limits(self) -> Limits:
        """The options that growing reads, checked."""
        if self.units < 1 or self.depth < 1:
            raise RecipeError(f"units is {self.units} and depth is {self.depth}: one or more of each")
        if not 0 < self.validation < 1 or not 0 <= self.gain < 1:
            raise RecipeError(f"validation is {self.validation} and gain is {self.gain}: a share between 0 and 1, and one of 0 or more, below 1")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise RecipeError(f"margin is {self.margin}: a number of 0 or more, or None for no bounds")
        return Limits(self.units, self.depth, self.gain, self.rejoin, self.margin)

    def _judges(self, groups: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which rows judge `[N]`: a share of each group, all but one of its rows at most."""
        draw, judges = check_random_state(self.random_state), np.zeros(len(groups), dtype=np.bool_)
        for group in np.unique(groups):
            places = draw.permutation(np.nonzero(groups == group)[0])
            judges[places[: min(len(places) - 1, max(1, round(self.validation * len(places))))]] = True
        return judges

    def _grow(self, rows: Numbers, y: Numbers, judges: npt.NDArray[np.bool_], limits: Limits) -> Growth:
        return grow((rows[~judges], y[~judges]), (rows[judges], y[judges]), limits)

    def _settled(self, network: Network, rows: Numbers, y: Numbers) -> Network:
        return refitted(network, rows, y) if self.refit else network


def opened(told: Any, kind: str) -> dict[str, Any]:
    """Return what `to_dict` of that kind of estimator wrote.

    Raises:
        ArtifactError: something else.
    """
    if not isinstance(told, dict) or told.get("format") != FORMAT or told.get("kind") != kind:
        has = f"{told.get('kind')!r} of format {told.get('format')!r}" if isinstance(told, dict) else type(told).__name__
        raise ArtifactError(f"{kind}.from_dict takes what its to_dict wrote, of format {FORMAT}, not {has}")
    return told
