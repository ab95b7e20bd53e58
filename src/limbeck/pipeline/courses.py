"""Schemes over time: the ordinary stages that each comes to."""

import inspect
from typing import Any

from limbeck.core import lookup
from limbeck.core.errors import RecipeError
from limbeck.core.scheme import Course

from .recipe import Recipe, TrainStage

__all__ = ["expanded"]


def expanded(recipe: Recipe) -> dict[str, Any] | None:
    """Return a recipe's stages with those that each scheme over time comes to in the place of the one that names it; None where there is none.

    Raises:
        RecipeError: a stage that is made twice, and whatever the scheme finds wrong.
    """
    written: dict[str, Any] = {}
    found = False
    for name, stage in recipe.stages.items():
        told = stage.model_dump(mode="json")
        if not isinstance(stage, TrainStage) or not _over_time(stage.scheme.kind):
            written[name] = told
            continue
        if stage.scheme.of is not None:
            raise RecipeError(f"the scheme {stage.scheme.kind} of stage {name!r} draws from no stage: leave `of` out")
        course: Course = lookup.build("schemes", stage.scheme.kind, stage.scheme.options)
        del told["scheme"]
        made = course.expand(name, told, dict(written))
        for one in made:
            if one in recipe.stages and one != name:
                raise RecipeError(f"the scheme {stage.scheme.kind} of stage {name!r} makes a stage {one!r}, and there is one of that name: rename it")
        assert [*made][-1] == name, f"the last stage of a course bears its name, {name}"
        written |= made
        found = True
    return written if found else None


def _over_time(kind: str) -> bool:
    part = lookup.find("schemes", kind)
    return inspect.isclass(part) and issubclass(part, Course)
