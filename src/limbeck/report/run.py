"""Run a recipe and write its report."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.events import Listener, silent

from . import write

if TYPE_CHECKING:
    from limbeck.pipeline.recipe import Recipe
    from limbeck.pipeline.run import Run

__all__ = ["run"]


def run(recipe: "str | Path | Mapping[str, Any] | Recipe", *, sets: Iterable[str] = (), out: str | Path | None = None, listener: Listener = silent) -> "Run":
    """Run a recipe (a built-in name, a file or a mapping) into `out`, `runs/<name>` where it is None, and write `report.html` there.

    `sets` are settings over the recipe, such as `stages.student.epochs=3`; `listener` hears of every event. What stands already is reused.

    Raises:
        LimbeckError: anything that a person can mend, in one line.
    """
    from limbeck.pipeline.run import run_recipe

    done = run_recipe(recipe, sets=sets, out=None if out is None else Path(out), listener=listener)
    return replace(done, report=write(done.out))
