"""Numbers that follow the epochs: weights and temperatures."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import RecipeError

__all__ = ["Clock", "Cosine", "Decay", "Linear", "Number", "Schedule", "at", "check_number"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Linear(_Shape):
    """From `start` to `end` in a straight line over the first `epochs` epochs (all of them where it is None), then `end`."""

    kind: Literal["linear"] = "linear"
    start: float = 0.0
    end: float = 1.0
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Cosine(_Shape):
    """From `start` to `end` along half a cosine over the first `epochs` epochs (all of them where it is None), then `end`."""

    kind: Literal["cosine"] = "cosine"
    start: float = 1.0
    end: float = 0.0
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Decay(_Shape):
    """`start` times `factor` for every `every` epochs that have passed in full."""

    kind: Literal["decay"] = "decay"
    start: float = 1.0
    factor: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    every: float = Field(default=1.0, gt=0, allow_inf_nan=False)


Schedule = Annotated[Linear | Cosine | Decay, Field(discriminator="kind")]
Number = float | Schedule


@dataclass(frozen=True)
class Clock:
    """Where training stands: `epoch` (fractional, counted from 0) of `epochs`."""

    epoch: float = 0.0
    epochs: float = 1.0


def at(number: "float | Linear | Cosine | Decay", clock: Clock) -> float:
    """Return the value of a number or a schedule at a moment of training.

    >>> at(Linear(start=0, end=2, epochs=4), Clock(epoch=1, epochs=10))
    0.5
    """
    if isinstance(number, (int, float)):
        return float(number)
    if isinstance(number, Decay):
        return number.start * number.factor ** math.floor(clock.epoch / number.every + 1e-9)  # 0.3 / 0.1 is just under 3
    span = number.epochs or clock.epochs
    done = 1.0 if clock.epoch >= span else clock.epoch / span
    if isinstance(number, Cosine):
        done = (1 - math.cos(math.pi * done)) / 2
    return number.start + (number.end - number.start) * done


def check_number(name: str, number: "float | Linear | Cosine | Decay", *, positive: bool) -> None:
    """Refuse a number, or a schedule with an end, that is not finite or is below what its meaning allows (above zero if `positive`, else zero or more)."""
    if isinstance(number, (int, float)):
        ends = [number]
    elif isinstance(number, Decay):
        ends = [number.start]
    elif isinstance(number, (Linear, Cosine)):
        ends = [number.start, number.end]
    else:
        raise RecipeError(f"{name} is {number!r}, a {type(number).__name__}; it must be a number, or a schedule: Linear, Cosine or Decay")
    for value in ends:
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise RecipeError(f"{name} is {value:g}; it must be a finite number {'above zero' if positive else 'of zero or more'}")
