"""How much is to go: a target, and the search for the least pruning that meets it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from limbeck.compress._method import Bench
from limbeck.core.errors import RecipeError

__all__ = ["Goal", "Target", "Wish", "search", "wish"]

Goal = Literal["ratio", "macs", "parameters", "bytes", "latency"]

Target = dict[Goal, float]
"""One of: `ratio`, the share of units that goes; `macs`, `parameters`, `bytes`, `latency`, the share of the model's own that stays."""

_MEASUREMENTS = 7
"""Of latency, within one search: each takes a second or more."""


@dataclass(frozen=True)
class Wish:
    """A target that was checked; `stays` is the share that may stay."""

    goal: Goal
    share: float

    @property
    def stays(self) -> float:
        return 1 - self.share if self.goal == "ratio" else self.share

    def count(self, model: nn.Module, bench: Bench) -> float:
        """What a model has of the goal: multiply-accumulates, parameters, bytes, milliseconds."""
        match self.goal:
            case "macs":
                return bench.macs(model)
            case "latency":
                return bench.latency_ms(model)
            case "bytes":
                return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        return sum(parameter.numel() for parameter in model.parameters())


def wish(target: Mapping[Goal, float], part: str) -> Wish:
    """Return what a target asks.

    Raises:
        RecipeError: none or several goals, or a share that is not between 0 and 1.
    """
    if len(target) != 1:
        given = f"{len(target)} goals ({', '.join(target)})" if target else "none"
        raise RecipeError(f"target of {part} names one goal, such as {{macs: 0.5}}: given is {given}; goals are ratio, macs, parameters, bytes and latency")
    [(goal, share)] = target.items()
    if not 0 < share < 1:
        raise RecipeError(f"target of {part}: {goal} is a share, above 0 and below 1, not {share:g}")
    return Wish(goal, float(share))


def search(asked: Wish, steps: int, cost: Callable[[int], float], way: str) -> tuple[int, float]:
    """Return the first of the steps 1 to `steps` at which no more stays than was asked for, and the share that stays there.

    `cost(step)` is what is counted, at step 0 that of the whole model; it falls from step to step. Latency, which is measured, is asked for a few steps alone.

    Raises:
        RecipeError: not even the last step meets it; the message says what that comes to, and `way`, what else could be done.
    """
    whole = cost(0)
    shares: dict[int, float] = {}

    def meets(step: int) -> bool:
        shares[step] = cost(step) / whole
        return shares[step] <= asked.stays + 1e-9

    if steps < 1 or not meets(steps):
        reached = shares.get(steps, 1.0)
        nearest = f"{1 - reached:.3g} goes" if asked.goal == "ratio" else f"{reached:.3g} of it stays"
        raise RecipeError(f"{asked.goal}: {asked.share:g} cannot be reached: with all gone that may go, {nearest}, and that is the closest; {way}")
    missed, met = 0, steps
    while met - missed > 1 and (asked.goal != "latency" or len(shares) < _MEASUREMENTS):
        middle = (missed + met) // 2
        missed, met = (missed, middle) if meets(middle) else (middle, met)
    return met, shares[met]
