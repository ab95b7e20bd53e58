"""Stages that learn one task after another: what each model still knows of the tasks before, and what it remembers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.core.artifact import Artifact
from limbeck.core.files import read_json, write_json
from limbeck.measure import lifelong as figures

from .modules import read_tensors
from .recipe import Recipe, TrainStage

__all__ = ["lifelong"]

_PREDICTIONS = "predictions.safetensors"
_WAYS = {"class": False, "task": True}
"""Way to be tested -> whether the task of an example is told."""


def lifelong(recipe: Recipe, out: Path) -> None:
    """Write `lifelong.json` and each artifact's rows and figures, for a recipe whose stages learn tasks of a sequence; no file for another.

    A stage that goes on with another's model has that one's rows and one more, also where that one was made by another run.
    """
    file = out / "lifelong.json"
    told: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for name, stage in recipe.stages.items():
        own = Artifact.open(out / "stages" / name, verify=False)
        before = stage.init if isinstance(stage, TrainStage) else None
        for player, artifact in {"": own, **{f".{player}": one for player, one in own.players.items()}}.items():
            split = artifact.spec.get("preprocess", {}).get("split")
            if split is None or _PREDICTIONS not in artifact.manifest["files"]:
                continue
            earlier = f"{before}{player}" if f"{before}{player}" in told else before if before in told else None
            if isinstance(stage, TrainStage):
                rows = _rows(artifact, split["tasks"], told[earlier]["rows"] if earlier else {})
                if artifact.metrics.get("sequence") != rows:
                    artifact.add_metrics({"sequence": rows, **_figures(rows)})
            elif not (rows := artifact.metrics.get("sequence", {})):
                continue
            memory = _memory(artifact.path)
            told[f"{name}{player}"] = {"before": earlier, "tasks": split["tasks"], "rows": rows, "figures": _figures(rows), "memory": memory}
            names = max(names, artifact.spec["class_names"], key=len)
    if told:
        write_json(file, {"stages": told, "class_names": names})
    else:
        file.unlink(missing_ok=True)


def _rows(artifact: Artifact, sizes: list[int], earlier: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The earlier rows of each matrix, as wide as the new one, and the new one."""
    said = read_tensors(artifact.path / _PREDICTIONS)
    found: dict[str, list[Any]] = {}
    for way, known in _WAYS.items():
        row = figures.task_accuracies(said["logits"].numpy(), said["labels"].numpy(), sizes, told=known)
        found[way] = [*([*one, *[None] * (len(sizes) - len(one))] for one in earlier.get(way, ())), row]
    return found


def _figures(rows: Mapping[str, list[Any]]) -> dict[str, float]:
    """The figures of both matrices; those that are not known are left out."""
    measures = {
        "average_accuracy": figures.average_accuracy, "incremental_accuracy": figures.incremental_accuracy,
        "backward_transfer": figures.backward_transfer, "forgetting": figures.forgetting,
    }  # fmt: skip
    found: dict[str, float] = {}
    for way, known in _WAYS.items():
        square = len(rows[way]) == len(rows[way][-1])  # a model that learnt all tasks at once has one row
        for name, measure in measures.items():
            value = measure(rows[way]) if square or name == "average_accuracy" else None
            found |= {} if value is None else {f"task_{name}" if known else name: value}
    return found


def _memory(folder: Path) -> dict[str, Any] | None:
    """What an artifact remembers: how many examples, in how many bytes, and whether the examples themselves are in it."""
    if not (folder / "memory").is_dir():
        return None
    told = read_json(folder / "memory" / "memory.json")
    return told | {"bytes": sum(file.stat().st_size for file in (folder / "memory").iterdir())}
