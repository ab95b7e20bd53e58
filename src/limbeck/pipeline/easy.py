"""Distillation in one call, for two modules and a loader that are there already."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import VERSION, lookup
from ..core.artifact import Artifact
from ..core.errors import RecipeError
from ..core.events import Listener, silent
from ..core.files import digest, lock, sweep
from ..core.objective import Objective, Term
from ..core.scheme import Scheme
from ..core.task import Split, Task
from ..core.teacher import Teacher
from ..engine.evaluate import predict
from ..engine.loop import Work, fit
from ..engine.plan import Training
from ..engine.runtime import Accelerator, Runtime
from ..measure.fidelity import fidelity
from ..measure.size import parameters
from .publish import Publication, choose, publish_module, training_metrics

__all__ = ["Result", "distill"]


@dataclass(frozen=True)
class Result:
    """A distilled student, the very module that was given; what was measured of it; the log of every epoch; and its artifact, where one was asked for."""

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
    epochs: int = 10,
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
        teacher: any module, taken as frozen, or a `Teacher`.
        student: any module; ends in eval mode with the weights of its best epoch by validation, or of its last where there is none.
        data: training batches, `(x, y)` or mappings, from any loader that can be iterated once an epoch; or a `Task`.
        objectives: objectives, weighted as `0.9 * KD(temperature=4.0)`; that and `0.1 * Supervised()` where they are left out.
        epochs: passes over the data.
        validation: batches that choose the best epoch.
        test: batches that are opened once, at the end.
        classes: how many classes there are; the width of the student's first answer where it is left out.
        training: every other option of training, as a recipe's stage has them (`{"optimizer": {"kind": "adam", "lr": 1e-3}}`).
        out: a folder for the artifact; nothing is written where it is left out. A call that was killed goes on in the same folder.
        seed: of every random choice.
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
    plan = training if isinstance(training, Training) else _plan(epochs, training)
    runtime = Runtime(accelerator=accelerator, precision=plan.precision)
    torch.manual_seed(seed)
    student.to(runtime.device)
    task = data if isinstance(data, Task) else _task(student, runtime.device, data, validation, test, classes)
    loader = task.loader("train", batch_size=plan.batch_size, seed=seed, device=runtime.device)
    example = next(iter(loader.batches(0)))
    chosen = list(objectives) if objectives is not None else _usual()
    scheme: Scheme = lookup.build("schemes", "offline", {}, student, teacher, chosen, task, example, task.facts())
    for module in scheme.children():
        module.to(runtime.device)
    if out is None:
        fitted = fit(scheme, task, loader, plan, runtime, listener=listener, stage="student")
        choose(scheme.shipped()["student"], fitted, plan)
        metrics = training_metrics(fitted) | {"parameters": parameters(student)}
        return Result(student, metrics | _tested(task, student, scheme, runtime.device), fitted.history, None)
    folder = Path(out)
    with lock(folder):
        sweep(folder)
        lineage = {"limbeck": VERSION, "seed": seed, "objectives": [repr(term) for term in chosen]}
        key = digest(lineage | {"training": plan.model_dump(mode="json", exclude={"epochs", "keep"})})
        work = Work(folder / "work" / f"student-{key[:12]}", folder / "logs")
        fitted = fit(scheme, task, loader, plan, runtime, work=work, listener=listener, stage="student")
        how = {"builder": None, "class": f"{type(student).__module__}.{type(student).__qualname__}"}
        told = Publication(folder / "student", "student", key, lineage, "")
        metrics = publish_module(told, plan, task, scheme.shipped()["student"], how, fitted, work.checkpoints, runtime.device)
        metrics |= _tested(task, student, scheme, runtime.device)
        artifact = Artifact.open(folder / "student")
        artifact.add_metrics(metrics)
    return Result(student, metrics, fitted.history, artifact)


def _plan(epochs: int, training: Mapping[str, Any] | None) -> Training:
    import pydantic

    try:
        return Training.model_validate({"epochs": epochs, **(training or {})})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"training option {'.'.join(str(piece) for piece in first['loc'])}: {first['msg']}, not {first['input']!r}") from None


def _task(student: nn.Module, device: torch.device, data: Any, validation: Any, test: Any, classes: int | None) -> Task:
    loaders: dict[Split, Any] = {"train": data}
    loaders |= {"validation": validation} if validation is not None else {}
    loaders |= {"test": test} if test is not None else {}
    if classes is None:
        asked: Task = lookup.find("tasks", "classify")(loaders)
        student.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            batch = next(iter(asked.loader("train", batch_size=1, device=device).batches(0)))
            classes = asked.forward(student, batch).main.classes
    return lookup.find("tasks", "classify")(loaders, classes=classes)


def _usual() -> list[Term]:
    return [Term(lookup.build("objectives", "response.kd", {}), 0.9), Term(lookup.build("objectives", "supervised", {}), 0.1)]


def _tested(task: Task, student: nn.Module, scheme: Scheme, device: torch.device) -> dict[str, Any]:
    """Measure the student, and its agreement with its teacher, on the test split where there is one."""
    if "test" not in task.splits():
        return {}
    teacher: Teacher = scheme.get_submodule("teacher")  # pyright: ignore[reportAssignmentType]

    def ask(inputs: Tensor) -> Tensor:
        return task.forward(student, {"input": inputs}).main.logits

    def ask_teacher(inputs: Tensor) -> Tensor:
        return teacher({"input": inputs}).main.logits

    said = predict(ask, task, "test", device=device)
    return dict(fidelity(said.logits, said.labels, predict(ask_teacher, task, "test", device=device).logits))
