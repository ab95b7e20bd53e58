"""`limbeck check`: what was found right, and with `--dry` what the doctor found of every stage that trains."""

from collections.abc import Sequence
from pathlib import Path

from limbeck.core.errors import RecipeError

from .output import say, say_json, stdout_kept
from .watching import watcher

__all__ = ["check_and_tell"]


def check_and_tell(source: str, sets: Sequence[str], out: Path | None, *, dry: bool, json: bool, quiet: bool) -> int:
    """Check a recipe and print a line for each thing looked at, or one JSON object; return the exit code, 2 where the doctor found a fault."""
    if out is not None and not dry:
        raise RecipeError("--out names the run whose trained teachers the doctor asks: it goes with --dry")
    with stdout_kept(), watcher(stages=0, processes=2, quiet=quiet) as listener:
        if dry:
            from limbeck.pipeline.doctor import dry as examine

            lines, found = examine(source, sets=sets, out=out, listener=listener)
        else:
            from limbeck.pipeline.check import check

            lines, found = check(source, sets=sets, listener=listener), {}
    told = [(stage, one) for stage, each in found.items() for one in each]
    faults = sum(one.level == "fault" for _, one in told)
    if json:
        findings = [{"stage": stage, "level": one.level, "about": one.about, "text": one.text} for stage, one in told]
        say_json({"recipe": source, "checked": lines} | ({"findings": findings} if dry else {}))
    else:
        warnings = sum(one.level == "warning" for _, one in told)
        summary = [f"{faults} {'fault' if faults == 1 else 'faults'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"] if dry else []
        say("\n".join([*lines, *(f"{stage}: {one}" for stage, one in told), *summary]))
    return 2 if faults else 0
