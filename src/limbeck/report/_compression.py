"""What surgeries and packers decided, layer by layer; what was chosen among several; and which models no other beats."""

from dataclasses import dataclass
from typing import Any

from limbeck.core.errors import ArtifactError
from limbeck.core.files import read_json

from ._format import percent, significant
from ._run import Model, Run

__all__ = ["Compressed", "compressed", "front"]

FILES = ("compression.json", "choice.json")


@dataclass(frozen=True)
class Compressed:
    """One stage: its label, how its model was made, what was said of it, and a table of layers or of candidates, which may be empty."""

    stage: str
    label: str
    method: str
    said: list[str]
    columns: list[str]
    rows: list[list[str]]


def compressed(run: Run) -> list[Compressed]:
    """Every stage that compressed a module or chose one, in the recipe's order.

    Raises:
        ArtifactError: a file that is damaged.
    """
    found = []
    for stage in run.stages:
        for name in FILES:
            file = run.folder / "stages" / stage / name
            if run.record.stages[stage].kind in ("compress", "choose") and file.is_file():
                told = read_json(file)
                if not isinstance(told, dict):
                    raise ArtifactError(f"{file} is not what a run writes (the whole file: an object is needed): it is damaged; run the recipe again")
                found.append(_choice(run, stage, told) if name == "choice.json" else _compression(run, stage, told))
    return found


def _compression(run: Run, stage: str, told: dict[str, Any]) -> Compressed:
    rows = [row for row in told.get("layers", ()) if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    said = [str(line) for line in told.get("said", ())]
    figures = {key: value for key, value in told.items() if key not in ("method", "layers", "said") and isinstance(value, (int, float, str))}
    said += [f"{key.replace('_', ' ')}: {_text(value)}" for key, value in figures.items()]
    return Compressed(stage, run.label(stage), str(told.get("method", "")), said, [key.replace("_", " ") for key in columns], _cells(rows, columns))


def _choice(run: Run, stage: str, told: dict[str, Any]) -> Compressed:
    rows = [{**row, "taken": "taken" if row["name"] == told["taken"] else ""} for row in told["candidates"]]
    columns = list(rows[0]) if rows else []
    by, metric = (str(told[key]).replace("_", " ") for key in ("by", "metric"))
    said = [f"{told['taken']} is the smallest by {by} within {told['within']:g} of a {metric} of {told['than']:.4f}"]
    return Compressed(stage, run.label(stage), "choose", said, [key.replace("_", " ") for key in columns], _cells(rows, columns))


def _cells(rows: list[dict[str, Any]], columns: list[str]) -> list[list[str]]:
    return [[_text(row.get(key, "")) for key in columns] for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return significant(value) if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def front(run: Run, cost: str) -> str:
    """Say which models no other beats in accuracy and `cost` at once, in a sentence; nothing where fewer than three were measured.

    Accuracies are compared as they were measured, without regard to their intervals.
    """
    known = [(model, price, accuracy) for model in run.models if (price := getattr(model.metrics, cost)) and (accuracy := model.metrics.accuracy) is not None]
    if len(known) < 3:
        return ""
    best: list[tuple[Model, float, float]] = []
    for model, price, accuracy in sorted(known, key=lambda one: (one[1], -one[2])):
        if not best or accuracy > best[-1][2]:
            best.append((model, price, accuracy))
    return f" The front, which no other model beats in both: {', '.join(f'{model.label} ({percent(accuracy)})' for model, _, accuracy in best)}."
