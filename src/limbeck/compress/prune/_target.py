"""How far to prune: a share of the weights removed, or a number of weights left."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from limbeck.core.errors import RecipeError

__all__ = ["Keep", "Ratio", "Target", "apportion", "goal", "weights_left"]


class Ratio(BaseModel):
    """Remove the share `ratio` of the weights, those that are zero already among them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ratio: float = Field(gt=0, lt=1)


class Keep(BaseModel):
    """Leave `keep` weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keep: int = Field(ge=1)


def _which(given: Any) -> str:
    """Which of the two a value means, by the key that it has."""
    keys = given if isinstance(given, Mapping) else type(given).model_fields if isinstance(given, (Ratio, Keep)) else ()
    return "keep" if "keep" in keys and "ratio" not in keys else "ratio"


Target = Annotated[Annotated[Ratio, Tag("ratio")] | Annotated[Keep, Tag("keep")], Discriminator(_which)]
"""`{ratio: 0.9}` or `{keep: 1000}`."""


def goal(target: Any, part: str) -> Ratio | Keep:
    """Return the target of a part, which may be a plain mapping.

    >>> goal({"keep": 1000}, "prune.weights")
    Keep(keep=1000)
    """
    try:
        return TypeAdapter(Target).validate_python(target)
    except ValidationError as error:
        raise RecipeError(f"target of {part} is {target!r}; it is {{ratio: 0.9}} or {{keep: 1000}}: {error.errors()[0]['msg']}") from None


def weights_left(target: Ratio | Keep, total: int, live: int) -> int:
    """Return how many of `total` weights are to be left, `live` of which are not zero now.

    >>> weights_left(Ratio(ratio=0.9), 1000, 1000)
    100

    Raises:
        RecipeError: none would be left, or no more than now would go; with the closest that can be asked for.
    """
    left = target.keep if isinstance(target, Keep) else total - math.floor(target.ratio * total + 0.5)
    if left < 1:
        raise RecipeError(f"target ratio {target.ratio:g} leaves none of {total} weights; the least that can be left is 1: {{keep: 1}}")  # pyright: ignore[reportAttributeAccessIssue]
    if left >= live:
        asked = f"keep: {target.keep}" if isinstance(target, Keep) else f"ratio: {target.ratio:g}, which is {left} left"
        least = f"keep below {live}, or a ratio above {(total - live) / total:.4g}" if live > 1 else "leave this model as it is"
        raise RecipeError(f"the target asks for {asked}, and only {live} of {total} weights are not zero as it is: nothing would be pruned; {least}")
    return left


def apportion(left: int, sizes: Sequence[int]) -> list[int]:
    """Share `left` out over groups of these sizes in proportion, to the last one (largest remainders, the first of equal ones).

    >>> apportion(5, [4, 4, 2])
    [2, 2, 1]
    """
    total = sum(sizes)
    shares = [left * size // total for size in sizes]
    owed = sorted(range(len(sizes)), key=lambda index: -(left * sizes[index] % total))
    for index in owed[: left - sum(shares)]:
        shares[index] += 1
    return shares
