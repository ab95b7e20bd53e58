"""Generations: each student teaches the next one, of the same architecture.

Furlanello et al., "Born Again Neural Networks", ICML 2018, arXiv:1805.04770, sec. 3.
"""

from collections.abc import Mapping
from typing import Any

from limbeck.core.errors import RecipeError
from limbeck.core.scheme import Course

__all__ = ["BornAgain"]


class BornAgain(Course):
    """Generation after generation of one architecture, each taught by the one before it and begun from other weights: born-again networks.

    The stage's teacher is generation 0; stage `NAME-1` learns from it, `NAME-2` from `NAME-1`, and the last, `NAME`, from the one before. Each is the stage as
    it is written, its objectives included, but for its teacher and its `reseed`. In the paper the loss of a generation is the cross-entropy with the labels
    plus that with the last generation's answer, at temperature 1. Its ensemble of generations (BANE) is a stage's teacher of its own:
    {kind: ensemble, of: [NAME-1, NAME-2, NAME]}.

    Args:
        generations: how many there are, generation 0 not counted.

    Raises:
        RecipeError: no generation, a stage whose teacher is not one stage's model, or one that goes on with an earlier stage's model.
    """

    def __init__(self, *, generations: int = 3) -> None:
        if generations < 1:
            raise RecipeError(f"generations is {generations}; there must be at least one")
        self.generations = generations

    def expand(self, name: str, stage: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return a stage for every generation."""
        if stage["kind"] != "distill":
            raise RecipeError(f"born_again begins with a trained generation: write stage {name!r} as {{kind: distill, teacher: {{kind: frozen, of: a stage}}}}")
        first = stage["teacher"].get("of")
        if not isinstance(first, str):
            raise RecipeError(f"born_again begins with one trained model, and the teacher of stage {name!r} is of {first!r}: name one stage")
        if stage.get("init") is not None:
            raise RecipeError(f"each generation begins anew, and stage {name!r} goes on with the model of {stage['init']!r}: give it a model, not init")
        names = [*(f"{name}-{number}" for number in range(1, self.generations)), name]
        teachers = [first, *names[:-1]]
        return {
            one: {**stage, "teacher": {**stage["teacher"], "of": teacher}, "reseed": stage.get("reseed", 0) + _APART * number}
            for number, (one, teacher) in enumerate(zip(names, teachers, strict=True), 1)
        }


_APART = 1000
"""Between the seeds of two generations: more than between those of a few runs of one recipe."""
