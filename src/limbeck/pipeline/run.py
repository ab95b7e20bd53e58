"""Run a recipe: stage after stage, each reused where nothing it depends on has changed, then measured side by side."""

import importlib.metadata
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limbeck.core import VERSION
from limbeck.core.artifact import Artifact
from limbeck.core.events import Event, Listener, Note, StageDone
from limbeck.core.files import atomic_folder, atomic_write, lock, read_json, sweep, write_json
from limbeck.core.task import Task

from .compare import compare
from .lifelong import lifelong
from .measured import measured
from .recipe import ChooseStage, CompressStage, DistillStage, ExportStage, QuantizeStage, Recipe, TrainStage, load_recipe, parents
from .resolve import make_tasks, stage_hashes

__all__ = ["Run", "run_recipe"]


@dataclass(frozen=True)
class Run:
    """What a run came to: the folder, and for every stage its kind, artifact, whether it was reused, and its metrics."""

    recipe: str
    out: Path
    seconds: float
    report: Path | None
    stages: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        stages = {name: {key: stage[key] for key in ("kind", "artifact", "reused", "metrics")} for name, stage in self.stages.items()}
        return {"recipe": self.recipe, "out": str(self.out), "seconds": self.seconds, "report": str(self.report) if self.report else None, "stages": stages}


def run_recipe(source: str | Path | Mapping[str, Any] | Recipe, *, sets: Iterable[str] = (), out: Path | None = None, listener: Listener) -> Run:
    """Run a recipe into `out` (`runs/<name>` where it is None): what is there already and still valid is reused, what was killed goes on.

    Raises:
        LimbeckError: anything that a person can mend, in one line.
    """
    began = time.monotonic()
    recipe = load_recipe(source, sets)
    out = Path("runs") / recipe.name if out is None else out
    notes: list[Note] = []

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event)
        listener(event)

    tasks = make_tasks(recipe)
    if not _all_there(recipe, out, tasks):
        from .check import check_recipe, check_room

        check_recipe(recipe, tasks, hear)
        check_room(out)
    with lock(out):
        sweep(out)
        atomic_write(out / "recipe.yaml", recipe.as_yaml().encode())
        digests: dict[str, str] = {}
        stages: dict[str, dict[str, Any]] = {}
        for name, stage in recipe.stages.items():
            start = time.monotonic()
            reused, artifact = _stage(recipe, name, out, tasks[name], digests, hear)
            digests |= {name: artifact.digest} | {f"{name}.{player}": one.digest for player, one in artifact.players.items()}
            stages[name] = {"kind": stage.kind, "artifact": f"stages/{name}", "reused": reused, "seconds": time.monotonic() - start}
            listener(StageDone(name, stage.kind, reused, stages[name]["seconds"], finite(artifact.metrics)))
        measured(recipe, out, digests, hear)
        compare(recipe, out, roles(recipe), digests)
        lifelong(recipe, out)
        for name in stages:
            stages[name]["metrics"] = finite(Artifact.open(out / "stages" / name, verify=False).metrics)
        seconds = time.monotonic() - began
        write_json(
            out / "run.json",
            _record(recipe, out, seconds, stages, [*_earlier_notes(out, stages), *(vars(note) for note in notes if note.stage != "measurement")]),
        )
    whole = {name: {**stage, "artifact": str(out / stage["artifact"])} for name, stage in stages.items()}
    return Run(recipe.name, out, seconds, None, whole)


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures among metrics."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def _all_there(recipe: Recipe, out: Path, tasks: Mapping[str, Task]) -> bool:
    """Say whether every stage's artifact stands already, by its manifest alone."""
    digests: dict[str, str] = {}
    for name in recipe.stages:
        if not (out / "stages" / name / "manifest.json").is_file():
            return False
        found = Artifact.open(out / "stages" / name, verify=False)
        if found.stage_hash != stage_hashes(recipe, name, tasks[name], digests)[0]:
            return False
        digests |= {name: found.digest} | {f"{name}.{player}": one.digest for player, one in found.players.items()}
    return True


def _earlier_notes(out: Path, stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what an earlier run noted of the stages that this one reused."""
    if not (out / "run.json").is_file():
        return []
    return [note for note in read_json(out / "run.json")["notes"] if stages.get(note["stage"], {}).get("reused")]


def _stage(recipe: Recipe, name: str, out: Path, task: Task, digests: Mapping[str, str], listener: Listener) -> tuple[bool, Artifact]:
    """Find a stage's artifact, or make it."""
    whole, but_epochs = stage_hashes(recipe, name, task, digests)
    target = out / "stages" / name
    shelf = out / "cache"
    if (found := _standing(target)) is not None and found.stage_hash != whole:
        _shelve(found, shelf)
        found = None
    if found is None and (kept := _standing(shelf / f"{name}-{whole[:12]}")) is not None and kept.stage_hash == whole:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept.path, target)
        found = Artifact.open(target)
    work = out / "work" / f"{name}-{whole[:12]}"
    if found is not None:
        shutil.rmtree(work, ignore_errors=True)  # what a kill left between publishing and clearing up
        return True, found
    stage = recipe.stages[name]
    continued = _continue(stage, name, shelf, work, but_epochs) if isinstance(stage, TrainStage) else None
    if continued is not None:
        listener(Note(f"goes on from epoch {continued['epochs']} of an earlier run of this stage", name))
    lineage = {
        "stage_hash": whole, "hash_without_epochs": but_epochs, "parents": {one: digests[one] for one in parents(stage)}, "seed": recipe.seed,
        "data": task.fingerprint(), "limbeck": VERSION, "continued_from": continued,
    }  # fmt: skip
    from .stages import Job, run_stage  # the loop and its libraries are loaded only where something is trained

    run_stage(Job(recipe, name, out, whole, lineage, work), task, listener)
    shutil.rmtree(work, ignore_errors=True)
    return False, Artifact.open(target)


def _standing(path: Path) -> Artifact | None:
    """Open what stands at a path, every byte checked; what is damaged is an error, never a reason to train again in silence."""
    return Artifact.open(path) if path.exists() else None


def _shelve(artifact: Artifact, shelf: Path) -> None:
    """Put an artifact aside, for when the option that replaced it is taken back."""
    place = shelf / f"{artifact.name}-{artifact.stage_hash[:12]}"
    shelf.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    os.replace(artifact.path, place)


def _continue(stage: TrainStage, name: str, shelf: Path, work: Path, but_epochs: str) -> dict[str, Any] | None:
    """Start a stage from a shelved one that differs only in having been trained for fewer epochs; say which, also when a kill came in between."""
    told = work / "continued.json"
    if work.exists():
        return read_json(told) if told.is_file() else None
    fewer: list[tuple[int, Artifact]] = []
    for path in sorted(shelf.glob(f"{name}-*")):
        lineage = read_json(path / "lineage.json")
        artifact = Artifact.open(path, verify=False)
        if lineage.get("hash_without_epochs") == but_epochs and artifact.metrics["epochs"] < stage.epochs:
            fewer.append((artifact.metrics["epochs"], artifact))
    if not fewer:
        return None
    epochs, found = max(fewer, key=lambda pair: pair[0])
    found = Artifact.open(found.path)
    continued = {"epochs": epochs, "stage_hash": found.stage_hash}
    with atomic_folder(work) as scratch:
        shutil.copytree(found.path / "checkpoint", scratch / "checkpoints")
        for player, artifact in {"student": found, **found.players}.items():
            (scratch / "best" / player).mkdir(parents=True)
            shutil.copy(artifact.path / "best.safetensors", scratch / "best" / player / "model.safetensors")
        write_json(scratch / told.name, continued)
    return continued


def roles(recipe: Recipe) -> dict[str, str | None]:
    """Say which stage plays which part in the report: the last distilled student, its teacher, the same model alone, its exported and quantized files.

    Distilled is also what learns from others than a teacher's stage: its peers, its own branches or past. A teacher that the student began as is no teacher to
    be measured against, and a student that began as another model has no fresh one of its kind alone.
    """
    found: dict[str, str | None] = dict.fromkeys(("teacher", "alone", "student", "shipped", "int8"))
    for name, stage in recipe.stages.items():
        if isinstance(stage, TrainStage) and _taught(stage):
            asked = stage.teacher.stages if isinstance(stage, DistillStage) else []
            found |= {"student": name, "teacher": next((one for one in asked if one != stage.init), None)}
    if found["student"] is None:
        trained = [name for name, stage in recipe.stages.items() if isinstance(stage, TrainStage)]
        found["student"] = trained[-1] if trained else None
    student = recipe.stages[found["student"]] if found["student"] else None
    for name, stage in recipe.stages.items():
        if isinstance(stage, TrainStage) and not _taught(stage) and isinstance(student, TrainStage) and _taught(student):
            alike = stage.model is not None and stage.model == student.model
            found["alone"] = name if alike and name != found["teacher"] else found["alone"]
        if isinstance(stage, ExportStage) and stage.of == found["student"]:
            found["shipped"] = name
    for name, stage in recipe.stages.items():
        if isinstance(stage, ExportStage) and found["shipped"] is None and _comes_of(recipe, name, found["student"]):
            found["shipped"] = name  # what was made of the student before it was exported
        if isinstance(stage, QuantizeStage) and found["shipped"] and stage.of == found["shipped"]:
            found["int8"] = name
    return found


def _comes_of(recipe: Recipe, name: str, student: str | None) -> bool:
    """Whether a stage's model is the student's, compressed, chosen or exported since."""
    stage = recipe.stages[name.partition(".")[0]]
    if name == student or not isinstance(stage, (CompressStage, ChooseStage, ExportStage, QuantizeStage)):
        return name == student
    return any(_comes_of(recipe, one, student) for one in (stage.of if isinstance(stage, ChooseStage) else [stage.of]))


def _taught(stage: TrainStage) -> bool:
    """Whether somebody teaches in a stage: a teacher, or the scheme's other players."""
    return isinstance(stage, DistillStage) or stage.scheme.kind.removeprefix("schemes.") != "offline"


def _record(recipe: Recipe, out: Path, seconds: float, stages: Mapping[str, Any], notes: list[dict[str, Any]]) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "lightning-fabric", "onnx", "onnxruntime", "numpy", "scikit-learn", "safetensors")}
    return {
        "recipe": recipe.name,
        "out": str(out),
        "seconds": seconds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["limbeck", *sys.argv[1:]]) if Path(sys.argv[0]).name == "limbeck" else f"limbeck run {shlex.quote(str(out / 'recipe.yaml'))}",
        "environment": {"limbeck": VERSION, "python": platform.python_version(), "platform": platform.platform(), **versions},
        "recipe_yaml": recipe.as_yaml(),
        "notes": notes,
        "roles": roles(recipe),
        "stages": stages,
    }
