"""What a recipe comes to: parts made and checked, options in full, and the hash of what each stage depends on."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_core
from torch import nn

from limbeck.core import VERSION, lookup
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.files import digest
from limbeck.core.objective import Term
from limbeck.core.scheme import Scheme
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from .learnt import grafted
from .recipe import DistillStage, ExportStage, Part, QuantizeStage, Recipe, TrainStage, task_of

__all__ = ["full", "graph_part", "make_model", "make_scheme", "make_tasks", "model_spec", "stage_hashes"]

_HANDED = {"models": frozenset({"in_shape", "classes"})}
_NO_MATTER = {"keep"}
"""Options that change nothing about what a stage makes."""


def full(slot: str, part: Part) -> dict[str, Any]:
    """Return a part's kind and options in full, JSON-able."""
    found = lookup.find(slot, part.kind)
    handed = _HANDED.get(slot, frozenset()) & frozenset(inspect.signature(found).parameters)
    label = part.kind if part.kind.startswith("python:") else f"{slot}.{lookup.full_name(slot, part.kind)}"
    options = lookup.check_options(found, part.options, label, handed)
    return {"kind": lookup.full_name(slot, part.kind), **pydantic_core.to_jsonable_python(options)}


def make_tasks(recipe: Recipe) -> dict[str, Task]:
    """Make each stage's task, one for all stages that agree on it; their data are not read yet."""
    made: dict[str, Task] = {}
    for name in recipe.stages:
        part = task_of(recipe, name)
        same = next((other for other in made if task_of(recipe, other) == part), None)
        made[name] = made[same] if same is not None else lookup.build("tasks", part.kind, part.options)
    return made


def model_spec(part: Part, facts: Facts) -> dict[str, Any]:
    """Return how to rebuild a model: builder, options in full, and what the data gave."""
    told = full("models", part)
    return {"builder": told.pop("kind"), "options": told, "in_shape": list(facts.in_shape), "classes": facts.classes}


def make_model(spec: Mapping[str, Any]) -> nn.Module:
    """Build a model from its spec, with fresh weights, and graft onto it what objectives put there."""
    shape, classes = tuple(spec["in_shape"]), spec["classes"]
    model = lookup.build("models", spec["builder"], spec["options"], in_shape=shape, classes=classes)
    for told in spec.get("grafts", ()):
        model = grafted(model, make_model(told["teacher"]), told, Facts(shape, classes, tuple(str(one) for one in range(classes)), 1))
    return model


def graph_part(slot: str, method: str | Part) -> Part:
    """Return an exporter or a compressor as a part, whether it was named alone or with options; a quantizer's folder goes without saying."""
    part = Part(kind=method) if isinstance(method, str) else method
    return part.model_copy(update={"kind": lookup.full_name(slot, part.kind)})


def make_scheme(stage: TrainStage, student: nn.Module, teachers: list[nn.Module], task: Task, facts: Facts, example: Batch) -> Scheme:
    """Put student, teacher and objectives together, bound by one batch.

    Raises:
        RecipeError, MismatchError: parts that do not fit.
    """
    if stage.early_stopping and "validation" not in task.splits():
        raise MismatchError("early_stopping watches the validation split, and there is none: set the task's `validation` above 0, or leave early_stopping out")
    terms = [Term(lookup.build("objectives", spec.kind, spec.options), spec.weight, gather=spec.gather) for spec in stage.objectives]
    teacher: Teacher | None = None
    if isinstance(stage, DistillStage):
        several = not isinstance(stage.teacher.of, str)
        asked = next(iter(inspect.signature(lookup.find("teachers", stage.teacher.kind)).parameters.values())).annotation
        if asked is not inspect.Parameter.empty and several != (typing.get_origin(asked) in (Sequence, list, tuple)):
            way = "one stage, of: name" if several else "several stages, of: [one, other]"
            raise RecipeError(f"the teacher {stage.teacher.kind} is made of {way}; given is of: {stage.teacher.of!r}")
        given = teachers if several else teachers[0]
        teacher = lookup.build("teachers", stage.teacher.kind, stage.teacher.options, given)
    return lookup.build("schemes", stage.scheme.kind, stage.scheme.options, student, teacher, terms, task, example, facts)


def stage_hashes(recipe: Recipe, name: str, task: Task, digests: Mapping[str, str]) -> tuple[str, str]:
    """Return a stage's hash, and its hash without the epochs: two stages that agree in the second differ only in how long they train.

    Both hold the resolved options, the parents' content, the data's fingerprint, limbeck's version and the source of every `python:` part;
    neither devices, threads, paths nor names.
    """
    stage = recipe.stages[name]
    task_part = task_of(recipe, name)
    kinds = [task_part.kind]
    asked = {key: value for key, value in full("tasks", task_part).items() if key != "root"}
    told: dict[str, Any] = {"kind": stage.kind, "seed": recipe.seed, "version": VERSION, "task": [asked, task.fingerprint()]}
    if isinstance(stage, TrainStage):
        plain = stage.model_dump(mode="json", exclude={"model", "init", "task", "objectives", "transfer", "scheme", "teacher", *_NO_MATTER})
        told |= {"training": plain, "transfer": full("transfer", stage.transfer), "scheme": full("schemes", stage.scheme)}
        told["model"] = full("models", stage.model) if stage.model is not None else digests[str(stage.init)]
        told["objectives"] = [
            full("objectives", Part(kind=spec.kind, **spec.options))
            | {"weight": pydantic_core.to_jsonable_python(spec.weight)}
            | ({"gather": True} if spec.gather else {})
            | ({"init": digests[spec.init]} if spec.init else {})
            for spec in stage.objectives
        ]
        kinds += [spec.kind for spec in stage.objectives] + [stage.transfer.kind, stage.scheme.kind]
        kinds += [stage.model.kind] if stage.model is not None else []
        if isinstance(stage, DistillStage):
            told["teacher"] = full("teachers", Part(kind=stage.teacher.kind, **stage.teacher.options)) | {"of": [digests[one] for one in stage.teacher.stages]}
            kinds.append(stage.teacher.kind)
    elif isinstance(stage, ExportStage):
        told |= stage.model_dump(mode="json", exclude={"of", "format"}) | {
            "of": digests[stage.of],
            "format": full("export", graph_part("export", stage.format)),
        }
    elif isinstance(stage, QuantizeStage):
        told |= stage.model_dump(mode="json", exclude={"of", "method"}) | {
            "of": digests[stage.of],
            "method": full("compress", graph_part("compress", stage.method)),
        }
    told["sources"] = [lookup.source_digest(kind) for kind in kinds]
    whole = digest(told)
    if isinstance(stage, TrainStage):
        told["training"] = {key: value for key, value in told["training"].items() if key != "epochs"}
    return whole, digest(told)
