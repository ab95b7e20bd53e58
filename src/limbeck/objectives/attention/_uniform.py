"""Layers paired at equal steps of depth, by one pattern for each side."""

import re
from collections.abc import Mapping

from limbeck.core.errors import MismatchError, RecipeError

__all__ = ["is_pattern", "uniform"]


def is_pattern(path: str) -> bool:
    """Whether a path stands for many layers: `blocks.*.attention`."""
    return "*" in path


def uniform(ours: str, theirs: str, student: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]], name: str) -> list[tuple[str, str]]:
    """Pair layer m of the M that `ours` matches with layer ceil(m K / M) of the K that `theirs` matches, both counted from 1: the last meets the last.

    `*` stands for a number in a path; `student`, `teacher`: path -> shape, of all layers.

    Raises:
        RecipeError: a `*` on one side alone, or twice in a path.
        MismatchError: no layer, or more layers of the student than of the teacher.
    """
    if ours.count("*") != 1 or theirs.count("*") != 1:
        raise RecipeError(f"{name}: {ours!r}: {theirs!r} must have one * on each side, or name one layer on each")
    mine, its = _matching(ours, student, "student", name), _matching(theirs, teacher, "teacher", name)
    if len(mine) > len(its):
        raise MismatchError(f"{name}: {ours!r} is {len(mine)} layers of the student and {theirs!r} only {len(its)} of the teacher: name the pairs one by one")
    return [(one, its[-(-m * len(its) // len(mine)) - 1]) for m, one in enumerate(mine, 1)]


def _matching(pattern: str, shapes: Mapping[str, tuple[int, ...]], side: str, name: str) -> list[str]:
    """The paths that a pattern matches, by their number; what follows a colon is kept."""
    path, colon, item = pattern.partition(":")
    before, _, after = path.partition("*")
    found = [(int(match[1]), one) for one in shapes if (match := re.fullmatch(rf"{re.escape(before)}(\d+){re.escape(after)}", one))]
    if not found:
        raise MismatchError(f"{name}: the {side} has no layers {path!r}, with a number for *; it has {', '.join(list(shapes)[:12]) or 'none'}")
    return [f"{one}{colon}{item}" for _, one in sorted(found)]
