"""What a sequence of tasks has left: figures of every method, its accuracy matrix as a heat map, and what it remembers."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from limbeck.core.errors import ArtifactError
from limbeck.core.files import read_json

from ._format import percent, points, size
from ._run import Run
from ._svg import drawing, element

_COLUMNS = {
    "average_accuracy": "Average accuracy", "forgetting": "Forgetting", "backward_transfer": "Backward transfer",
    "incremental_accuracy": "Mean while learning", "task_average_accuracy": "Average, task told", "task_forgetting": "Forgetting, task told",
}  # fmt: skip
_CELL, _LEFT, _TOP = 44.0, 76.0, 24.0


@dataclass(frozen=True)
class Sequence:
    """One method: its name, its figures in the order of the columns, what it remembers, and its heat map where it learnt one task after another."""

    name: str
    figures: list[str]
    memory: str
    svg: Markup | None


@dataclass(frozen=True)
class Lifelong:
    """Every method of a run that learns a sequence."""

    columns: list[str]
    rows: list[Sequence]


def lifelong(run: Run) -> Lifelong | None:
    """The methods of a run whose stages learn one task after another, by the last stage of each; None where there is none.

    Raises:
        ArtifactError: `lifelong.json` is not what a run writes.
    """
    file = run.folder / "lifelong.json"
    if not file.is_file():
        return None
    try:
        stages: dict[str, dict[str, Any]] = read_json(file)["stages"]
        last = [name for name in stages if not any(other["before"] == name for other in stages.values())]
        last = [name for name in last if name.partition(".")[0] in run.record.stages]
        rows = [_sequence(name, stages[name], at) for at, name in enumerate(last)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"{file} is not what a run writes ({type(error).__name__}: {error}): it is damaged; run the recipe again") from None
    return Lifelong(list(_COLUMNS.values()), rows)


def _sequence(name: str, told: dict[str, Any], at: int) -> Sequence:
    found = told["figures"]
    figures = [(points if "transfer" in key else percent)(float(found[key])) if key in found else "" for key in _COLUMNS]
    rows = told["rows"].get("class", [])
    return Sequence(name, figures, _memory(told["memory"]), _heat(f"plot-lifelong-{at}", name, rows) if len(rows) > 1 else None)


def _memory(told: dict[str, Any] | None) -> str:
    if told is None:
        return "nothing is remembered"
    what = (
        "the examples themselves: whoever has the artifact has them"
        if told["keep"] == "examples"
        else "by id, without the examples, which a later task finds again in the data"
    )
    return f"{told['examples']:,} of {told['seen']:,} examples met, {size(told['bytes'])}, {what}"


def _heat(key: str, name: str, rows: list[list[float | None]]) -> Markup:
    """Rows: after each task; columns: the accuracy on each task."""
    wide = max(len(row) for row in rows)
    marks = [element("text", f"task {at + 1}", x=_LEFT + (at + 0.5) * _CELL, y=_TOP - 8, text_anchor="middle", class_="tick") for at in range(wide)]
    for at, row in enumerate(rows, wide - len(rows)):
        y = _TOP + (at - wide + len(rows)) * _CELL
        marks.append(element("text", f"after {at + 1}", x=_LEFT - 8, y=y + _CELL / 2 + 4, text_anchor="end", class_="tick"))
        for column, value in enumerate(row):
            if value is None:
                continue
            x = _LEFT + column * _CELL
            marks.append(element("rect", x=x, y=y, width=_CELL - 2, height=_CELL - 2, fill="currentColor", fill_opacity=0.06 + 0.44 * value))
            marks.append(element("text", f"{100 * value:.0f}", x=x + _CELL / 2 - 1, y=y + _CELL / 2 + 4, text_anchor="middle", class_="label"))
    title = f"Accuracy on each task after each task, {name}, in percent"
    told = "; ".join(f"after task {at}: {', '.join('-' if one is None else percent(one) for one in row)}" for at, row in enumerate(rows, wide - len(rows) + 1))
    return drawing(key, title, told, _LEFT + wide * _CELL, _TOP + len(rows) * _CELL, *marks)
