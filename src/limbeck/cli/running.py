"""`limbeck run`: a recipe run under the user's eyes, and the table at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.errors import Interrupted

from .figures import file_size, percent
from .output import rendered, say, say_json, stdout_kept
from .watching import watcher

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["results", "run_and_tell"]


def run_and_tell(source: str, sets: Sequence[str], out: Path | None, *, json: bool, quiet: bool) -> None:
    """Run a recipe, then print its results: a short table and the report's path, or one JSON object."""
    from limbeck.pipeline.recipe import load_recipe

    recipe = load_recipe(source, sets)
    try:
        with stdout_kept():
            from limbeck import run

            with watcher(stages=len(recipe.stages), processes=recipe.runtime.devices, quiet=quiet) as listener:
                done = run(source, sets=sets, out=out, listener=listener)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished stages and the last checkpoint are kept: run the same command again to go on") from None
    if json:
        say_json(done.as_dict())
        return
    from limbeck.core.files import read_json
    from limbeck.pipeline.run import roles

    measurement = done.out / "measurement.json"
    told = read_json(measurement) if measurement.is_file() else {}
    named = {stage: role for role, stage in roles(recipe).items() if stage is not None}
    say(rendered(results(done.stages, named, told)))
    if told.get("busy"):
        say("Latency was measured on a busy machine: read it with care, or run again in quiet.")
    say(f"Report: {done.report}" if done.report else f"Results: {done.out}")


def results(stages: Mapping[str, Mapping[str, Any]], roles: Mapping[str, str], measurement: Mapping[str, Any]) -> "Table":
    """Draw the stages' table: accuracy with its interval, parameters, file, latency, and how many times faster than the first model measured."""
    from rich.table import Table
    from rich.text import Text

    ratios = {ratio["b"]: ratio for ratio in measurement.get("ratios", ())}
    first = measurement["ratios"][0]["a"] if ratios else ""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("stage")
    for heading in ("accuracy (95%)", "parameters", "file", "latency p50", *([f"faster than {first} (95%)"] if ratios else [])):
        table.add_column(heading, justify="right")
    for name, stage in stages.items():
        metrics, ratio = stage["metrics"], ratios.get(name)
        role = roles.get(name, name)
        cells = [
            name if role == name else f"{name} ({role})",
            f"{percent(metrics['accuracy'])} ({100 * metrics['accuracy_low']:.1f}-{100 * metrics['accuracy_high']:.1f})" if "accuracy" in metrics else "-",
            f"{metrics['parameters']:,.0f}" if "parameters" in metrics else "-",
            file_size(metrics["file_bytes"]) if "file_bytes" in metrics else "-",
            f"{metrics['latency_ms_p50']:.3g} ms" if "latency_ms_p50" in metrics else "-",
        ]
        if ratios:
            cells.append(f"{ratio['ratio']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "-")
        table.add_row(*(Text(cell) for cell in cells))
    return table
