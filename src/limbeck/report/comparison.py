"""From `compare.json` to a page with a table that sorts, and to the same table as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.errors import ArtifactError
from limbeck.core.files import atomic_write, read_json

__all__ = ["markdown", "write_comparison"]

_HEADINGS = ("method", "accuracy", "over plain KD", "p", "over alone", "p", "weight", "validation", "parameters")


def write_comparison(out: Path) -> Path:
    """Write `out/compare.html` and `out/leaderboard.md` from `out/compare.json`, and return the page's path; the same file gives the same bytes.

    Raises:
        ArtifactError: no comparison in this folder.
        StorageError: a full disk, or a folder that cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    file = out / "compare.json"
    if not file.is_file():
        raise ArtifactError(f"there is no comparison in {out}: limbeck compare RECIPE --out {out}")
    told = read_json(file)
    templates = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup((templates / "report.css").read_text("utf-8"))
    page = environment.get_template("compare.html.j2").render(
        style=style, told=told, about=_about(told), headings=_HEADINGS, rows=[_cells(row) for row in told["rows"]]
    )
    atomic_write(out / "compare.html", page.encode("utf-8", "replace"))
    atomic_write(out / "leaderboard.md", markdown(told).encode())
    return out / "compare.html"


def markdown(told: Mapping[str, Any]) -> str:
    """Return a comparison as a Markdown table, with what it stands on."""
    lines = [f"# {told['recipe']}: methods compared", "", *(f"{sentence}" for sentence in _about(told)), ""]
    lines += [f"| {' | '.join(_HEADINGS)} |", f"|{'---|' * len(_HEADINGS)}"]
    lines += [f"| {' | '.join(text for text, _ in _cells(row))} |" for row in told["rows"]]
    if told["unfit"]:
        lines += ["", "Not in the table:", "", *(f"- `{name}`: {reason}" for name, reason in told["unfit"].items())]
    return "\n".join(lines) + "\n"


def _about(told: Mapping[str, Any]) -> list[str]:
    teacher, student = told["teacher"], told["student"]
    of = f"{told['metric']} {_percent(teacher[told['metric']])}" if told["metric"] in teacher else "a metric that was not measured"
    factors = ", ".join(f"{factor:g}" for factor in told["factors"])
    return [
        f"Teacher: {teacher.get('parameters', 0):,} parameters, {of}. Student: {student['parameters']:,} parameters, {told['steps']:,} steps "
        f"({told['epochs']} epochs) on {told['examples']:,} training examples, the same batches and first weights for every method.",
        "Each method is its weight times its loss, plus the supervised loss; alone is that loss times its weight. "
        f"The weight was chosen by validation among {factors} times the usual one, "
        f"one run each with a seed that is in no figure here. Then {told['seeds']} seeds; the last epoch is scored on the test split.",
        f"Intervals are 95%, Student's t over {told['seeds']} seeds (paired for differences, in points). p: paired t-test, Holm-adjusted over the methods.",
        f"limbeck {told['limbeck']}, torch {told['torch']}.",
    ]


def _cells(row: Mapping[str, Any]) -> list[tuple[str, float | str]]:
    """A row's cells: what they show, and what they are sorted by."""
    kd, alone = row.get("over_kd"), row.get("over_alone")
    return [
        (row["method"], row["method"]),
        (f"{_percent(row['mean'])} ({100 * row['low']:.2f} to {100 * row['high']:.2f})", row["mean"]),
        *_gap(kd),
        *_gap(alone),
        (f"{row['weight']:g}", row["weight"]),
        (_percent(row["validation"]), row["validation"]),
        (f"{row['parameters']:,}", row["parameters"]),
    ]


def _gap(gap: Mapping[str, float] | None) -> Sequence[tuple[str, float | str]]:
    if gap is None:
        return [("", 0.0), ("", 1.0)]
    told = f"{100 * gap['mean']:+.2f} ({100 * gap['low']:+.2f} to {100 * gap['high']:+.2f})"
    return [(told, gap["mean"]), (f"{gap['p_holm']:.2g}", gap["p_holm"])]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
