"""`limbeck compare`: methods compared under the user's eyes, and where the page lies."""

from collections.abc import Sequence
from pathlib import Path

from limbeck.core.errors import Interrupted, RecipeError

from .output import say, say_json, stdout_kept
from .watching import watcher

__all__ = ["compare_and_tell"]


def compare_and_tell(source: str, methods: str, seeds: int, factors: str, jobs: int, sets: Sequence[str], out: Path | None, *, json: bool, quiet: bool) -> None:
    """Compare methods, write the page, and print the table in Markdown, or one JSON object."""
    try:
        told = [float(factor) for factor in factors.split(",")]
    except ValueError:
        raise RecipeError(f"--factors {factors!r} must be numbers with commas between them, such as 0.1,1,10") from None
    names = None if methods == "all" else [name.strip() for name in methods.split(",")]
    from limbeck.pipeline.recipe import load_recipe
    from limbeck.pipeline.study import compare_methods
    from limbeck.report.comparison import markdown, write_comparison

    recipe = load_recipe(source, sets)
    folder = Path("runs") / f"{recipe.name}-compare" if out is None else out
    try:
        with stdout_kept(), watcher(stages=0, processes=2, quiet=quiet) as listener:
            found = compare_methods(recipe, methods=names, seeds=seeds, factors=told, jobs=jobs, out=folder, listener=listener)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; every run that was finished is kept: run the same command again to go on") from None
    page = write_comparison(folder)
    if json:
        say_json(found | {"report": str(page)})
    else:
        say(f"{markdown(found)}\nPage: {page}")
