"""Which layers of two models belong together.

Shapes: N examples, D channels, H x W places of a map, T places of a sequence, C classes.
"""

from collections.abc import Mapping
from typing import Literal

from limbeck.core.errors import MismatchError

__all__ = ["Wish", "pair"]

Wish = Literal["stages", "middle", "last", "vector"]
"""What an objective wants paired: the ends of all stages, of the middle one, of the last one, or the vector that the classifier reads."""


def pair(wish: Wish, student: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]], classes: int, name: str) -> list[tuple[str, str]]:
    """Pair layers of two models by the shapes that they give.

    `student`, `teacher`: path -> shape, in the order in which the layers ran. A stage ends with the last and outermost layer of each resolution.
    Stages pair by resolution where both have it, else by relative depth.

    Raises:
        MismatchError: no layers of the kind that is wanted.
    """
    if wish == "vector":
        return [(_vector(student, classes, "student", name), _vector(teacher, classes, "teacher", name))]
    ours, theirs = _stages(student, "student", name), _stages(teacher, "teacher", name)
    if wish == "last":
        return [(ours[-1], theirs[-1])]
    if len(ours) <= len(theirs):
        pairs = [(one, _partner(index, ours, theirs, student, teacher)) for index, one in enumerate(ours)]
    else:
        pairs = [(_partner(index, theirs, ours, teacher, student), one) for index, one in enumerate(theirs)]
    return [pairs[len(pairs) // 2]] if wish == "middle" else pairs


def _partner(index: int, few: list[str], many: list[str], shapes: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]) -> str:
    place = shapes[few[index]][2:]
    same = [one for one in many if place and others[one][2:] == place]
    return same[-1] if same else many[round((index + 1) * len(many) / len(few)) - 1]


def _stages(shapes: Mapping[str, tuple[int, ...]], side: str, name: str) -> list[str]:
    """The ends of the stages of a model, first to last."""
    ends: dict[tuple[int, ...], str] = {}
    for path, shape in shapes.items():
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            ends[shape[2:]] = path  # what holds others runs to its end after them
    if not ends:
        raise MismatchError(f"{name} finds no stages in the {side}, no layer that gives maps [N, D, H, W]: name the layers, layers: {{mine: theirs}}")
    return list(ends.values())


def _vector(shapes: Mapping[str, tuple[int, ...]], classes: int, side: str, name: str) -> str:
    """What the classifier reads: the input of the last layer that gives [N, C]."""
    last = [path for path, shape in shapes.items() if len(shape) == 2 and shape[1] == classes]
    if not last:
        raise MismatchError(f"{name} finds no classifier in the {side}, no layer that gives [N, {classes}]: name the layers, layers: {{mine: theirs}}")
    deepest = max(last, key=lambda path: path.count("."))  # the layer itself, not what holds it
    return f"{deepest}:in"
