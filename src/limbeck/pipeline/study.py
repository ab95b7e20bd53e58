"""Compare methods fairly: the same student, data, steps and tuning budget for each, paired seeds, and a test against plain distillation and none.

Every method's weight is chosen by validation among the same factors on the weight that its paper gives it, with a seed that no figure comes from; then it
is trained once for each seed, and the last epoch is scored on the test split. Whatever a trial came to is kept in a file of its own: a second call goes on.
"""

import inspect
import multiprocessing
import multiprocessing.connection
import os
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.core import VERSION, lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import LimbeckError, MismatchError, RecipeError, TrainingError
from limbeck.core.events import Listener, Note, Progress, StageDone, StageStarted, silent
from limbeck.core.files import digest, lock, read_json, sha256, sweep, write_json
from limbeck.core.task import Task
from limbeck.engine.checkpoint import seed_everything
from limbeck.engine.evaluate import evaluate
from limbeck.engine.loop import fit
from limbeck.engine.runtime import Runtime
from limbeck.measure.size import parameters
from limbeck.measure.statistics import holm, paired_p, paired_t

from .assemble import assemble
from .modules import load_module
from .recipe import DistillStage, ObjectiveSpec, Recipe, load_recipe
from .resolve import full, make_model, make_tasks, model_spec, task_of
from .run import roles, run_recipe

__all__ = ["ALONE", "FACTORS", "compare_methods"]

ALONE, PLAIN = "alone", "response.kd"
FACTORS = (0.1, 1.0, 10.0)
"""What each method's usual weight is multiplied by when it is tuned."""
_TUNING_SEED = 1_000_000


@dataclass(frozen=True)
class _Trial:
    """One training run: a method at a weight, with a seed; the test split is opened only where `test` says so."""

    recipe: str
    student: str
    teacher: str
    method: str
    weight: float
    seed: int
    test: bool
    key: str
    file: str


def compare_methods(
    source: str | Path | Mapping[str, Any] | Recipe, *, methods: Sequence[str] | None = None, seeds: int = 5, factors: Sequence[float] = FACTORS,
    sets: Iterable[str] = (), out: Path | None = None, jobs: int = 1, listener: Listener = silent,
) -> dict[str, Any]:  # fmt: skip
    """Compare methods on a recipe's distilled student, and return what `out/compare.json` then holds.

    `methods` are objectives by name, all that apply where it is None; plain distillation and the student alone are always among them. The recipe's own
    objectives do not matter: each method is `weight * method + supervised`, its weight `usual * factor`;
    the student alone is `weight * supervised`, tuned alike.

    Raises:
        RecipeError: no distil stage, an unknown method, fewer than two seeds.
        MismatchError: no validation or test split.
    """
    recipe = load_recipe(source, sets)
    if seeds < 2 or jobs < 1 or not factors or min(factors) <= 0:
        raise RecipeError(f"a comparison needs 2 seeds or more, factors above zero and 1 job or more, not {seeds} seeds, factors {list(factors)}, {jobs} jobs")
    student = roles(recipe)["student"]
    stage = recipe.stages[student] if student else None
    if student is None or not isinstance(stage, DistillStage) or not isinstance(stage.teacher.of, str):
        raise RecipeError(f"the recipe {recipe.name} distils no student from a single teacher: a comparison needs such a stage")
    for name in methods or ():
        lookup.full_name("objectives", name)
    task = make_tasks(recipe)[student]
    if missing := [split for split in ("validation", "test") if split not in task.splits()]:
        raise MismatchError(f"the data have no {missing[0]} split: a comparison chooses weights by validation and reports the test split")
    out = Path("runs") / f"{recipe.name}-compare" if out is None else out
    with lock(out), ExitStack() as stack:
        sweep(out)
        teacher = _teacher(recipe, stage.teacher.of, out, listener)
        chosen, unfit = _applicable(recipe, student, teacher, task, methods)
        for name, reason in unfit.items():
            listener(Note(f"{name} does not apply: {reason}", "compare"))
        study = _Study(recipe, student, teacher, task, out, jobs, listener)
        stack.callback(study.pool.shutdown, cancel_futures=True)
        tuning = {(name, factor): study.trial(name, chosen[name] * factor, _TUNING_SEED, test=False) for name in chosen for factor in factors}
        tuned = study.run("tune", list(tuning.values()))
        weights: dict[str, float] = {}
        for name in chosen:
            reached = {factor: tuned[tuning[name, factor].key] for factor in factors}
            sound = {factor: told["validation"][task.metric] for factor, told in reached.items() if "failed" not in told}
            if not sound:
                unfit[name] = f"training failed at every weight: {next(iter(reached.values()))['failed']}"
                continue
            best = (max if task.higher_is_better else min)(sound.values())
            weights[name] = chosen[name] * next(factor for factor in sorted(sound, key=lambda f: abs(f - 1.0)) if sound[factor] == best)
        final = {(name, seed): study.trial(name, weight, seed, test=True) for name, weight in weights.items() for seed in range(seeds)}
        told = study.run("seeds", list(final.values()))
        rows = {name: [told[final[name, seed].key] for seed in range(seeds)] for name in weights}
        failed = {name: next(one["failed"] for one in row if "failed" in one) for name, row in rows.items() if any("failed" in one for one in row)}
        unfit |= {name: f"training failed with the weight that was chosen: {reason}" for name, reason in failed.items()}
        rows = {name: row for name, row in rows.items() if name not in failed}
        for name in (PLAIN, ALONE):
            if name not in rows:
                raise TrainingError(f"{name}, which everything is compared with, cannot be trained: {unfit[name]}")
        found = _table(rows, weights, task) | {
            "recipe": recipe.name, "metric": task.metric, "seeds": seeds, "factors": list(factors), "epochs": stage.epochs, "unfit": unfit,
            "steps": next(iter(rows.values()))[0]["steps"], "examples": task.facts().examples, "limbeck": VERSION, "torch": torch.__version__,
            "teacher": _of(Artifact.open(teacher), task.metric), "student": {"model": full("models", stage.model) if stage.model else None,
            "parameters": parameters(_student(recipe, student, task, 0)[0])}, "recipe_yaml": recipe.as_yaml(),
        }  # fmt: skip
        write_json(out / "compare.json", found)
    return found


def _teacher(recipe: Recipe, name: str, out: Path, listener: Listener) -> Path:
    """Train the teacher, once; return its artifact."""
    wanted, stages = [name], {}
    while wanted:
        stage = recipe.stages[one := wanted.pop()]
        stages[one] = stage
        wanted += [parent for parent in (getattr(stage, "init", None), *(stage.teacher.stages if isinstance(stage, DistillStage) else ())) if parent]
    part = recipe.model_copy(update={"stages": {one: recipe.stages[one] for one in recipe.stages if one in stages}, "name": f"{recipe.name}-teacher"})
    return Path(run_recipe(part, out=out / "teacher", listener=listener).stages[name]["artifact"])


def _of(artifact: Artifact, metric: str) -> dict[str, Any]:
    return {name: artifact.metrics[name] for name in (metric, f"{metric}_low", f"{metric}_high", "parameters") if name in artifact.metrics}


def _applicable(recipe: Recipe, student: str, teacher: Path, task: Task, asked: Sequence[str] | None) -> tuple[dict[str, float], dict[str, str]]:
    """Bind every method once: name -> the weight that its paper gives it, and name -> why it does not apply."""
    known = {name: lookup.find("objectives", name) for name in lookup.names("objectives")}
    if asked is not None:
        known = {full: known[full] for full in dict.fromkeys([PLAIN, *(lookup.full_name("objectives", name) for name in asked)])}
    fit_, unfit = {ALONE: 1.0}, dict[str, str]()
    for name, part in known.items():
        if name == "supervised":
            continue
        if required := [option.name for option in lookup.options(part).values() if option.required]:
            unfit[name] = f"it cannot be made without {', '.join(required)}"
            continue
        trial = _Trial(recipe.as_yaml(), student, str(teacher), name, part.usual, 0, False, "", "")
        try:
            with torch.random.fork_rng(devices=[]):
                _prepared(trial, recipe, task)
        except LimbeckError as error:
            unfit[name] = str(error)
            continue
        fit_[name] = part.usual
    if PLAIN in unfit:
        raise MismatchError(f"plain distillation, which everything is compared with, does not apply: {unfit[PLAIN]}")
    return fit_, unfit


def _student(recipe: Recipe, name: str, task: Task, seed: int) -> Any:
    stage = recipe.stages[name]
    assert isinstance(stage, DistillStage)
    if stage.model is None:
        raise RecipeError(f"stage {name} trains an earlier stage's model on: a comparison starts from a fresh `model`")
    seed_everything(seed)
    return make_model(model_spec(stage.model, task.facts())), stage


def _prepared(trial: _Trial, recipe: Recipe, task: Task) -> Any:
    """Put a trial's scheme together as a recipe's stage would, from its seed; every method's student begins with the same weights and batches."""
    model, stage = _student(recipe, trial.student, task, trial.seed)
    own = ObjectiveSpec(kind="supervised" if trial.method == ALONE else trial.method, weight=trial.weight)
    objectives = [own] if trial.method == ALONE else [own, ObjectiveSpec(kind="supervised")]
    stage = stage.model_copy(update={"objectives": objectives, "select": "last"})
    made = assemble(trial.student, stage, model, [load_module(Artifact.open(Path(trial.teacher)))], task, seed=trial.seed)
    return made.scheme, made.loader, stage


class _Study:
    """What all trials of a comparison share."""

    def __init__(self, recipe: Recipe, student: str, teacher: Path, task: Task, out: Path, jobs: int, listener: Listener) -> None:
        self.recipe, self.student, self.teacher, self.task, self.out, self.listener = recipe, student, teacher, task, out, listener
        self.pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_worker)  # starts nobody before there is work
        stage = recipe.stages[student].model_dump(mode="json", exclude={"objectives", "select", "keep", "kind"})
        self.same = {
            "stage": stage, "teacher": Artifact.open(teacher).digest, "data": task.fingerprint(), "limbeck": VERSION,
            "task": {key: value for key, value in full("tasks", task_of(recipe, student)).items() if key != "root"},
        }  # fmt: skip

    def trial(self, method: str, weight: float, seed: int, *, test: bool) -> _Trial:
        source = "" if method == ALONE else sha256(Path(inspect.getfile(lookup.find("objectives", method))))
        key = digest({**self.same, "method": method, "weight": weight, "seed": seed, "test": test, "source": source})
        file = self.out / "trials" / f"{method}-{seed}-{key[:12]}.json"
        return _Trial(self.recipe.as_yaml(), self.student, str(self.teacher), method, weight, seed, test, key, str(file))

    def run(self, name: str, trials: Sequence[_Trial]) -> dict[str, dict[str, Any]]:
        """Run those trials that have not been run, so many at a time; return what each came to."""
        (self.out / "trials").mkdir(parents=True, exist_ok=True)
        left = [trial for trial in trials if not Path(trial.file).is_file()]
        began = time.monotonic()
        self.listener(StageStarted(name, "compare", len(trials)))
        done = [self.pool.submit(_run_trial, trial) for trial in left]
        for count, future in enumerate(as_completed(done), len(trials) - len(left) + 1):
            future.result()
            self.listener(Progress(name, count, len(trials)))
        self.listener(StageDone(name, "compare", not left, time.monotonic() - began, {}))
        return {trial.key: read_json(Path(trial.file)) for trial in trials}


def _worker() -> None:
    """Compute with one thread, and end with the process that asked, however it ends: a killed one would leave its workers computing for nobody."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_TASKS: dict[str, tuple[Recipe, Task]] = {}
"""Of a worker: a recipe's data are read once."""


def _run_trial(trial: _Trial) -> None:
    if trial.recipe not in _TASKS:
        import yaml

        recipe = Recipe.model_validate(yaml.safe_load(trial.recipe))
        _TASKS[trial.recipe] = recipe, make_tasks(recipe)[trial.student]
    recipe, task = _TASKS[trial.recipe]
    began = time.monotonic()
    told: dict[str, Any] = {"method": trial.method, "weight": trial.weight, "seed": trial.seed}
    try:
        scheme, loader, stage = _prepared(trial, recipe, task)
        seed_everything(trial.seed + 1)
        runtime = Runtime(precision=stage.precision)
        fitted = fit(scheme, task, loader, stage, runtime, listener=silent)
        shipped = scheme.shipped()["student"]
        told |= {"steps": fitted.steps, "validation": evaluate(shipped, task, "validation", runtime), "parameters": parameters(shipped)}
        told |= {"test": evaluate(shipped, task, "test", runtime)} if trial.test else {}
        told |= {"parts": fitted.history[-1]["parts"], "players": sorted(scheme.players())}
    except TrainingError as error:
        told["failed"] = str(error)
    write_json(Path(trial.file), told | {"seconds": time.monotonic() - began})


def _table(rows: Mapping[str, Sequence[Mapping[str, Any]]], weights: Mapping[str, float], task: Task) -> dict[str, Any]:
    """One row for each method: the metric over the seeds, and its paired differences from plain distillation and from the student alone."""
    reached = {name: [one["test"][task.metric] for one in row] for name, row in rows.items()}
    sign = 1 if task.higher_is_better else -1
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        found[name] = {
            "method": name, "weight": weights[name], "values": reached[name], **_interval(reached[name]),
            "validation": statistics.mean(one["validation"][task.metric] for one in row), "parameters": row[0]["parameters"],
        }  # fmt: skip
    for against in (PLAIN, ALONE):
        others = [name for name in rows if name != against and against in rows]
        p = {name: paired_p([a - b for a, b in zip(reached[name], reached[against], strict=True)]) for name in others}
        for (name, raw), adjusted in zip(p.items(), holm(list(p.values())), strict=True):
            gap = [a - b for a, b in zip(reached[name], reached[against], strict=True)]
            found[name][f"over_{'kd' if against == PLAIN else 'alone'}"] = {**_interval(gap), "p": raw, "p_holm": adjusted}
    ranked = sorted(found.values(), key=lambda row: -sign * row["mean"])
    return {"rows": ranked}


def _interval(values: Sequence[float]) -> dict[str, float]:
    told = asdict(paired_t(values))
    return {name: told[name] for name in ("mean", "low", "high")}
