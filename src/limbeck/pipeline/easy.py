"""Distillation in one call, for two modules and a loader that are there already."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import VERSION, lookup
from limbeck.core._complaint import complaint
from limbeck.core.artifact import Artifact
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.events import Listener, silent
from limbeck.core.files import digest, lock, sweep
from limbeck.core.knowledge import Knowledge, Link
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Scheme
from limbeck.core.task import Batch, Loader, Split, Task
from limbeck.core.teacher import Teacher, as_teacher
from limbeck.engine.checkpoint import seed_everything
from limbeck.engine.evaluate import predict, scored
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Accelerator, Runtime
from limbeck.measure.size import parameters
from limbeck.teachers.cached import Cached
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.frozen import Frozen

from .pretrained import lasting
from .publish import Publication, choose, metrics_of_test, publish_module, training_metrics

__all__ = ["Result", "distill"]


@dataclass(frozen=True)
class Result:
    """A distilled student; what was measured of it; the log of every epoch; and its artifact, where one was asked for.

    The student is the very module that was given, but for an objective that puts a part of the teacher into what ships (`feature.simkd`): then it is a new
    module that shares the given one's parameters.
    """

    student: nn.Module
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    artifact: Artifact | None


def distill(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    data: Iterable[Any] | Task,
    *,
    objectives: Iterable[Objective | Term] | None = None,
    epochs: int | None = None,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    classes: int | None = None,
    training: Training | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    accelerator: Accelerator = "cpu",
    listener: Listener = silent,
) -> Result:
    """Teach a student what a teacher knows, in place: the student that was given is the one that learns.

    Args:
        teacher: any module, taken as frozen, or a `Teacher`. Not a bit of it changes, and it ends in eval mode, on the accelerator's device.
        student: any module; ends in eval mode with the weights of its best epoch by validation, or of its last where there is none.
        data: training batches, `(x, y)` or mappings, from any loader that can be iterated once an epoch; or a `Task`, which has its own validation and test.
        objectives: objectives, weighted as `0.9 * KD(temperature=4.0)`; that and `0.1 * Supervised()` where they are left out, with `BernoulliKD` in its
            place for a task of yes-or-no answers, and `RegressionKD(margin=None)` for one of real numbers.
        epochs: passes over the data, 10 where neither this nor `training` says.
        validation: batches that choose the best epoch.
        test: batches that are opened at the end, to measure the student and how far it agrees with its teacher.
        classes: how many classes there are; the width of the student's first answer where it is left out.
        training: every other option of training, as a recipe's stage has them (`{"optimizer": {"kind": "adam", "lr": 1e-3}}`); `batch_size` is a `Task`'s,
            a loader has its own.
        out: a folder for the artifact; nothing is written where it is left out. A call that was killed goes on in the same folder, and one that was
            finished gives what it gave, or goes on to more epochs, as long as teacher, objectives, training, seed and the student's shapes are the same.
            Neither what a loader gives nor the student's first weights are compared: take another folder for others.
        seed: of every random choice; it sets torch's global one.
        accelerator: cpu, cuda, mps, or auto.

    Raises:
        RecipeError, DataError, MismatchError: before step one, what does not fit.
        TrainingError: a loss that is not finite.

    Example:
        >>> x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
        >>> done = distill(nn.Linear(8, 3), nn.Linear(8, 3), [(x, y)], epochs=2)
        >>> len(done.history)
        2
    """
    for side, given in (("teacher", teacher), ("student", student)):
        if not isinstance(given, nn.Module):
            raise MismatchError(f"the {side} is a {type(given).__name__}; it must be a torch.nn.Module: distill(teacher, student, data)")
    if isinstance(objectives, (Objective, Term)):
        raise RecipeError("objectives is a single one: give a list, objectives=[...]")
    plan = _plan(epochs, training)
    if isinstance(data, Task) and (validation is not None or test is not None or classes is not None):
        raise RecipeError("data is a Task, which has its own validation, test and classes: give them to it, not to distill")
    if isinstance(data, Task) and plan.batch_size % plan.accumulate:
        raise MismatchError(f"batch_size {plan.batch_size} does not divide into {plan.accumulate} micro-batches: take a multiple of {plan.accumulate}")
    runtime = Runtime(accelerator=accelerator, precision=plan.precision)
    seed_everything(seed)
    asked = as_teacher(teacher)
    for model in (student, asked):
        model.to(runtime.device)
        if plan.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    task = data if isinstance(data, Task) else _task(student, runtime.device, data, validation, test, classes)
    views = asked.views if isinstance(data, Task) else None
    loader = task.loader("train", batch_size=plan.batch_size // plan.accumulate, seed=seed, device=runtime.device, views=views)
    for split in task.splits():
        if split != "train":
            task.scores(*_asked(task, student, task.loader(split, batch_size=plan.batch_size, device=runtime.device), split))
    example = _first(loader, "train")
    chosen = [one if isinstance(one, Term) else Term(one) for one in (_usual(_heard(task, student, example).main.link) if objectives is None else objectives)]
    known: dict[str, Any] = {
        "limbeck": VERSION, "seed": seed, "objectives": [_told(term) for term in chosen], "teacher": _identity(asked), "student": _shape(student),
        "data": task.fingerprint() if isinstance(data, Task) else [*task.facts().in_shape, task.facts().classes, task.facts().examples],
    }  # fmt: skip
    scheme: Scheme = lookup.build("schemes", "offline", {}, student, asked, chosen, task, example, task.facts())
    for module in scheme.children():
        module.to(runtime.device)
    shipped = scheme.shipped()["student"]
    if out is None:
        fitted = fit(scheme, task, loader, plan, runtime, listener=listener, stage="student")
        choose(shipped, fitted, plan)
        metrics = training_metrics(fitted) | {"parameters": parameters(shipped)}
        return Result(shipped, metrics | _tested(task, shipped, asked, runtime.device), fitted.history, None)
    folder = Path(out)
    with lock(folder):
        sweep(folder)
        key = digest(known | {"training": plan.model_dump(mode="json", exclude={"epochs", "keep"})})
        work = Work(folder / "work" / f"student-{key[:12]}", folder / "logs")
        fitted = fit(scheme, task, loader, plan, runtime, work=work, listener=listener, stage="student")
        how = lasting(student, {"builder": None, "class": f"{type(student).__module__}.{type(student).__qualname__}"})
        told = Publication(folder / "student", "student", key, known, "")
        metrics = publish_module(told, plan, task, shipped, how, fitted, work.checkpoints, runtime.device)
        metrics |= _tested(task, shipped, asked, runtime.device)
        artifact = Artifact.open(folder / "student")
        artifact.add_metrics(metrics)
    return Result(shipped, metrics, fitted.history, artifact)


def _plan(epochs: int | None, training: Training | Mapping[str, Any] | None) -> Training:
    import pydantic

    given = training.model_dump() if isinstance(training, Training) else dict(training or {})
    if epochs is not None and given.get("epochs", epochs) != epochs:
        raise RecipeError(f"epochs is {epochs}, and training says {given['epochs']}: say it once")
    for name in given.keys() - Training.model_fields.keys():
        raise RecipeError(f"no option {name!r} in training{did_you_mean(name, Training.model_fields)}")
    given |= {} if epochs is None else {"epochs": epochs}
    try:
        return Training.model_validate(given)
    except pydantic.ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        about = [one for one in error.errors(include_url=False) if one["loc"][0] == name]
        raise RecipeError(complaint("training", name, Training.model_fields[name].annotation, given[name], about)) from None


def _task(student: nn.Module, device: torch.device, data: Any, validation: Any, test: Any, classes: int | None) -> Task:
    loaders: dict[Split, Any] = {"train": data}
    loaders |= {"validation": validation} if validation is not None else {}
    loaders |= {"test": test} if test is not None else {}
    if classes is None:
        task: Task = lookup.find("tasks", "classify")(loaders)
        classes = _asked(task, student, task.loader("train", batch_size=1, device=device), "train")[0].main.classes
    return lookup.find("tasks", "classify")(loaders, classes=classes)


_USUAL: dict[Link, tuple[str, dict[str, Any]]] = {
    "softmax": ("response.kd", {}),
    "bernoulli": ("response.bernoulli_kd", {}),
    "identity": ("response.regression_kd", {"margin": None}),
}


def _usual(link: Link) -> list[Term]:
    return [Term(lookup.build("objectives", *_USUAL[link]), 0.9), Term(lookup.build("objectives", "supervised", {}), 0.1)]


def _first(loader: Loader, split: Split) -> Batch:
    """The first batch of a split, torch's random state put back."""
    with torch.random.fork_rng(devices=[]):
        batch = next(loader.batches(0), None)
    if batch is None:
        raise DataError(f"the {split} loader gave no batch: it is empty, or can be iterated only once")
    return batch


def _asked(task: Task, student: nn.Module, loader: Loader, split: Split) -> tuple[Knowledge, Batch]:
    """What the student says of the first batch of a split, and that batch."""
    batch = _first(loader, split)
    return _heard(task, student, batch), batch


@torch.no_grad()
def _heard(task: Task, student: nn.Module, batch: Batch) -> Knowledge:
    """What the student says of a batch; its statistics and mode stay as they were."""
    modes = {module: module.training for module in student.modules()}
    student.eval()
    try:
        return task.forward(student, batch)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _told(part: nn.Module) -> str:
    """A part with its options, which are its public attributes, and those of the parts in it."""
    given = {name: value for name, value in sorted(vars(part).items()) if not name.startswith("_") and name not in ("training", "clock")}
    options = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)  # None also stands for what is bound later
    inner = ", ".join(_told(child) for child in part.children() if isinstance(child, (Objective, Teacher)))
    return f"{type(part).__module__}.{type(part).__qualname__}({options})" + (f"[{inner}]" if inner else "")


def _identity(teacher: nn.Module) -> list[str]:
    """What a teacher is, its weights included, for those that hold them still."""
    if isinstance(teacher, Cached):
        return [_told(teacher)]
    if isinstance(teacher, Ensemble):
        return [_told(teacher), *(line for member in teacher.members for line in _identity(member))]
    model = teacher.model if isinstance(teacher, Frozen) else teacher
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return [f"{type(model).__module__}.{type(model).__qualname__} {weights.hexdigest()}"]


def _shape(student: nn.Module) -> list[str]:
    return [f"{name} {list(value.shape)}" for name, value in student.state_dict().items()]


def _tested(task: Task, student: nn.Module, teacher: Teacher, device: torch.device) -> dict[str, Any]:
    """Measure the student on the test split where there is one, and, where both know the same classes, its agreement with its teacher.

    Both answer in one pass: a loader may shuffle. A teacher that knows recorded examples alone is not asked.
    """
    if "test" not in task.splits():
        return {}
    if len(_asked(task, student, task.loader("test", batch_size=1, device=device), "test")[0].answer.predictions) > 1:  # tokens: scored, and not kept
        return {f"test_{name}": value for name, value in scored(partial(task.forward, student), task, "test", device=device).means.items()}
    answers: list[Tensor] = []

    def ask(batch: Batch) -> Knowledge:
        theirs, said = None if teacher.views is not None else teacher(batch).main.logits.float(), task.forward(student, batch)
        answers.append((theirs if said.mask is None else theirs[said.mask]).cpu() if theirs is not None else torch.empty(0))
        return said

    said = predict(ask, task, "test", device=device)
    theirs = torch.cat(answers)
    return metrics_of_test(said, theirs if theirs.shape == said.logits.shape else None)
