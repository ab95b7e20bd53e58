"""Sizes between a student's and its teacher's: whole numbers that a model can be built with, spaced evenly in their logarithm."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from limbeck.core.errors import LimbeckError, RecipeError, did_you_mean
from limbeck.core.lookup import build, find, full_name, options

__all__ = ["Size", "below", "chosen", "parameters_of", "size_of"]

Size = int | list[int]
"""A number, or a list of them: units of each layer, say."""

_STEPS = 4096
"""Into how many steps, each the same factor, the way from one size to another is cut."""


def size_of(model: Mapping[str, Any], option: str, whose: str) -> Size:
    """Return a model's size as a recipe, or the default of its signature, gives it.

    Raises:
        RecipeError: the model has no such option, or it is no size.
    """
    known = options(find("models", model["kind"]))
    if option not in known:
        raise RecipeError(f"assistants are sized by the option {option!r}, and the {whose}'s model {model['kind']} has none{did_you_mean(option, known)}")
    value = model.get(option, known[option].default)
    found = list(value) if isinstance(value, (list, tuple)) else value
    numbers = found if isinstance(found, list) else [found]
    if not numbers or not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in numbers):
        raise RecipeError(
            f"assistants are sized by the option {option!r}, and the {whose}'s is {value!r}: it must be a whole number above zero, or a list of them"
        )
    return found


def below(one: Size, other: Size) -> bool:
    """Whether one size is smaller than another: no number of it larger, and one at least smaller; lists of other lengths have no order.

    >>> below(8, 48), below([8, 8], [8, 16]), below([4, 32], [8, 16])
    (True, True, False)
    """
    ours, theirs = ([size] if isinstance(size, int) else size for size in (one, other))
    return len(ours) == len(theirs) and ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def parameters_of(model: Mapping[str, Any], in_shape: Sequence[int], classes: int) -> int:
    """Return how many parameters a model has, built for such examples; it leaves torch's random state as it was."""
    told = {name: value for name, value in model.items() if name != "kind"}
    with torch.random.fork_rng(devices=[]):
        made = build("models", model["kind"], told, in_shape=tuple(in_shape), classes=classes)
    return sum(one.numel() for one in made.parameters())


def between(small: Size, large: Size) -> list[Size]:
    """Return the sizes strictly between two, from small to large, each number moved by the same share of its logarithm.

    >>> between(4, 8), between([8, 8], [10, 16])
    ([5, 6, 7], [[8, 9], [8, 10], [9, 10], [9, 11], [9, 12], [9, 13], [9, 14], [10, 14], [10, 15]])
    """
    found: list[Size] = []
    for step in range(1, _STEPS):
        share = step / _STEPS
        size = _moved(small, large, share)
        if below(small, size) and below(size, large) and (not found or size != found[-1]):
            found.append(size)
    return found


def _moved(small: Size, large: Size, share: float) -> Size:
    if isinstance(small, int) and isinstance(large, int):
        return round(small ** (1 - share) * large**share)
    assert isinstance(small, list) and isinstance(large, list)
    return [round(a ** (1 - share) * b**share) for a, b in zip(small, large, strict=True)]


def _log_magnitude(size: Size) -> float:
    """The mean of the logarithms of a size's numbers."""
    numbers = [size] if isinstance(size, int) else size
    return sum(map(math.log, numbers)) / len(numbers)


def chosen(model: Mapping[str, Any], option: str, large: Size, count: int, *, by: str, in_shape: Sequence[int], classes: int) -> list[Size]:
    """Return `count` sizes between the model's own and `large`, from large to small, evenly spaced in the logarithm of the option or of the parameters.

    Each is one that the model can be built with, for examples of `in_shape`.

    Raises:
        RecipeError: there are not so many, or the model cannot be built for such examples.
    """
    small = size_of(model, option, "student")
    parameters = _Counted(model, option, in_shape, classes)

    def measure(size: Size) -> float | None:
        count = parameters(size)
        return None if count is None else math.log(count) if by == "parameters" else _log_magnitude(size)

    low, high = measure(small), measure(large)
    if low is None or high is None:
        raise RecipeError(f"the student's model {model['kind']} cannot be built with the teacher's {option}, {large}: give sizes of your own")
    found: list[Size] = []
    for index in range(count, 0, -1):
        wish = low + (high - low) * index / (count + 1)
        size = _nearest(between(small, found[-1] if found else large), wish, measure)
        if size is None:
            raise RecipeError(
                f"between a {full_name('models', model['kind'])} of {option} {small} and one of {large} there are no {count} sizes to build assistants with: "
                "take a lower count, or sizes of your own"
            )
        found.append(size)
    return found


def _nearest(sizes: Sequence[Size], wish: float, measure: Callable[[Size], float | None]) -> Size | None:
    """Return the size whose measure, which grows with it, is the nearest to `wish`, of those that have one; few of them are measured."""
    low, high = 0, len(sizes)  # the first that is not below the wish is at `low` or after it, and before `high` or the first measured one from there on
    while low < high:
        middle = (low + high) // 2
        at, value = _first(sizes, range(middle, high), measure)
        low, high = (at + 1, high) if value is not None and value < wish else (low, middle)
    sides = [_first(sizes, range(low, len(sizes)), measure), _first(sizes, range(low - 1, -1, -1), measure)]
    near = [(abs(value - wish), at) for at, value in sides if value is not None]
    return sizes[min(near)[1]] if near else None


def _first(sizes: Sequence[Size], places: range, measure: Callable[[Size], float | None]) -> tuple[int, float | None]:
    """The first of these places whose size has a measure, and it."""
    for place in places:
        if (value := measure(sizes[place])) is not None:
            return place, value
    return -1, None


class _Counted:
    """How many parameters a model has at each size, None where it cannot be built; each is built once."""

    def __init__(self, model: Mapping[str, Any], option: str, in_shape: Sequence[int], classes: int) -> None:
        self._model, self._option, self._for = model, option, (in_shape, classes)
        self._found: dict[str, int | None] = {}
        try:
            parameters_of(model, in_shape, classes)
        except LimbeckError as error:
            raise RecipeError(f"assistants are sized by building the student's model, and that fails: {error}; in_shape says for which examples") from None

    def __call__(self, size: Size) -> int | None:
        if str(size) not in self._found:
            try:
                self._found[str(size)] = parameters_of({**self._model, self._option: size}, *self._for)
            except LimbeckError:
                self._found[str(size)] = None
        return self._found[str(size)]
