"""What a recipe comes to: parts made and checked, options in full, and the hash of what each stage depends on."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pydantic_core
from torch import nn

from limbeck.core import VERSION, lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import RecipeError
from limbeck.core.files import digest
from limbeck.core.objective import Term
from limbeck.core.scheme import Scheme
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher
from limbeck.teachers._rehearsed import Rehearsed
from limbeck.teachers._store_columns import Recording

from .learnt import grafted
from .pretrained import headed, identity
from .recipe import ChooseStage, CompressStage, DistillStage, Drawing, ExportStage, GivenStage, Part, QuantizeStage, Recipe, TeacherSpec, TrainStage, task_of

__all__ = [
    "HANDED",
    "drawing",
    "from_store",
    "full",
    "graph_part",
    "make_drawing",
    "make_model",
    "make_scheme",
    "make_tasks",
    "make_teacher",
    "model_spec",
    "partner_of",
    "reads_as_partner",
    "recording_of",
    "stage_hashes",
    "writes",
]

_FROM_STAGES = frozenset({"model", "models", "store"})
_GIVEN = _FROM_STAGES | {"student", "partner"}
"""What a teacher's constructor may ask for; from stages, but for the student, and the second task that the transfer set knows."""
HANDED = {
    "models": frozenset({"in_shape", "classes"}),
    "teachers": _GIVEN,
    "transfer": frozenset({"source", "partner", "writer", "folder"}),
    "schemes": frozenset({"student", "teacher", "objectives", "task", "example", "facts", "source"}),
}
"""Slot -> what assembly hands to its parts, by the name of the parameter."""
_NO_MATTER = {"keep"}
"""Options that change nothing about what a stage makes."""
_PARTNERS: "WeakKeyDictionary[Task, dict[str, Task]]" = WeakKeyDictionary()
"""A stage's task -> the second tasks that it was paired with, by their options."""


def full(slot: str, part: Part) -> dict[str, Any]:
    """Return a part's kind and options in full, JSON-able."""
    found = lookup.find(slot, part.kind)
    handed = HANDED.get(slot, frozenset()) & frozenset(inspect.signature(found).parameters)
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
    told = headed(full("models", part), facts)
    return {"builder": told.pop("kind"), "options": told, "in_shape": list(facts.in_shape), "classes": facts.classes}


def make_model(spec: Mapping[str, Any]) -> nn.Module:
    """Build a model from its spec, with fresh weights, changed as it was since: grafted by objectives, operated by surgeries."""
    shape, classes = tuple(spec["in_shape"]), spec["classes"]
    model = lookup.build("models", spec["builder"], spec["options"], in_shape=shape, classes=classes)
    for told in spec.get("changes", ()):
        if "graft" in told:
            teacher = make_model(told["graft"]["teacher"])
            model = grafted(model, teacher, told["graft"], Facts(shape, classes, tuple(str(one) for one in range(classes)), 1))
        else:
            model = lookup.find("compress", told["surgery"]).rebuild(model, told["record"])
    return model


def partner_of(spec: Drawing, task: Task) -> Task | None:
    """Return the second task that a stage's task is paired with, made once and kept as long as that one: its data are read once."""
    if spec.partner is None:
        return None
    made, name = _PARTNERS.setdefault(task, {}), digest(spec.partner.model_dump(mode="json"))
    if name not in made:
        made[name] = lookup.build("tasks", spec.partner.kind, spec.partner.options)
    return made[name]


def drawing(slot: str, spec: Drawing, task: Task, digests: Mapping[str, str]) -> dict[str, Any]:
    """A part and its options in full, with the content of what it draws from."""
    told = full(slot, Part(kind=spec.kind, **spec.options)) | ({"of": digests[spec.of]} if spec.of else {})
    if spec.partner is not None and (partner := partner_of(spec, task)) is not None:
        told["partner"] = _task(spec.partner, partner)
    return told


def _task(part: Part, task: Task) -> list[Any]:
    """A task's options in full, but for where its data lie, and its data's fingerprint."""
    return [_anywhere(full("tasks", part)), task.fingerprint()]


def _anywhere(tree: Any) -> Any:
    """Options without the folders in them."""
    if isinstance(tree, dict):
        return {key: _anywhere(value) for key, value in tree.items() if key != "root"}
    return [_anywhere(one) for one in tree] if isinstance(tree, list) else tree


def graph_part(slot: str, method: str | Part) -> Part:
    """Return an exporter or a compressor as a part, whether it was named alone or with options; a quantizer's folder goes without saying."""
    part = Part(kind=method) if isinstance(method, str) else method
    return part.model_copy(update={"kind": lookup.full_name(slot, part.kind)})


def from_store(spec: TeacherSpec) -> bool:
    """Whether a teacher is what was recorded of its stage's model, and not the model."""
    return "store" in _asked(lookup.find("teachers", spec.kind))


def recording_of(spec: TeacherSpec) -> Recording:
    """Return what is to be recorded for a teacher that is made of a store."""
    options = full("teachers", Part(kind=spec.kind, **spec.options))
    return Recording.model_validate({name: options[name] for name in Recording.model_fields if options.get(name) is not None})


def make_teacher(spec: TeacherSpec, models: Sequence[nn.Module], student: nn.Module, store: Path | None, partner: Task | None = None) -> Teacher:
    """Make a teacher of what its constructor asks for; `models` are those of its stages, `store` holds what they said once where it asks for that.

    `partner` is the second task that the transfer set knows, for a teacher that is asked as that task asks.
    Without the store that it asks for, it is one that answers as the store would, of the model itself.

    Raises:
        RecipeError: it is made of other things than the recipe gives.
    """
    asked = _asked(lookup.find("teachers", spec.kind))
    several = isinstance(spec.of, list)
    ways = {
        "model": (spec.of is not None and not several, "one stage, of: name"),
        "store": (spec.of is not None and not several, "one stage, of: name"),
        "models": (several, "several stages, of: [one, other]"),
    }
    assert ways.keys() == _FROM_STAGES
    wants, way = next((ways[name] for name in asked if name in ways), (spec.of is None, "no stage: leave `of` out"))
    if not wants:
        raise RecipeError(f"the teacher {spec.kind} is made of {way}; given is of: {spec.of!r}")
    if "partner" in asked and partner is None:
        raise RecipeError(f"the teacher {spec.kind} is asked as the transfer set's second task asks: name it, transfer: {{kind: retokenized, partner: ...}}")
    if "store" in asked and store is None:
        return Rehearsed(models[0], recording_of(spec))
    given: dict[str, Any] = {"model": models[0] if models else None, "models": list(models), "student": student, "store": store, "partner": partner}
    return lookup.build("teachers", spec.kind, spec.options, *(given[name] for name in asked))


def reads_as_partner(spec: TeacherSpec) -> bool:
    """Whether a teacher is asked as the transfer set's second task asks."""
    return "partner" in _asked(lookup.find("teachers", spec.kind))


def _asked(part: Any) -> list[str]:
    """What a teacher's constructor is handed, in order."""
    return [one.name for one in inspect.signature(part).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD and one.name in _GIVEN]


def make_drawing(slot: str, spec: Drawing, on: Task, source: Artifact | None, *args: Any, writer: nn.Module | None = None, folder: Path | None = None) -> Any:
    """Make a transfer set, or a scheme, which may draw from the artifact of an earlier stage, or pair the stage's task with a second one.

    `writer` is the model of that stage, for a transfer set that it writes, and `folder` where what it wrote is kept.

    Raises:
        RecipeError: it needs one and none is named, or the other way round.
    """
    parameters = inspect.signature(lookup.find(slot, spec.kind)).parameters
    from_stage = "writer" if "writer" in parameters else "source"
    ways = {
        from_stage: (spec.of, "draws from no stage: leave `of` out", "draws from what an earlier stage has left: name it, of: stage"),
        "partner": (spec.partner, "knows no second task: leave `partner` out", "pairs two tasks: name the second one, partner: {kind: ...}"),
    }
    for name, (given, unasked, missing) in ways.items():
        if name not in parameters and given is not None:
            raise RecipeError(f"{slot}.{spec.kind} {unasked}")
        if name in parameters and parameters[name].default is inspect.Parameter.empty and given is None:
            raise RecipeError(f"{slot}.{spec.kind} {missing}")
    given = {"source": source, "partner": partner_of(spec, on), "writer": writer, "folder": folder}
    drawn = {name: value for name, value in given.items() if name in parameters}
    return lookup.build(slot, spec.kind, spec.options, *args, **drawn)


def writes(spec: Drawing) -> bool:
    """Whether a transfer set is what the model of an earlier stage writes."""
    return "writer" in inspect.signature(lookup.find("transfer", spec.kind)).parameters


def make_scheme(
    stage: TrainStage, student: nn.Module, teacher: Teacher | None, task: Task, facts: Facts, example: Batch, source: Artifact | None = None
) -> Scheme:
    """Put student, teacher and objectives together, bound by one batch; `source` is what the scheme draws from.

    Raises:
        RecipeError, MismatchError: parts that do not fit.
    """
    terms = [Term(lookup.build("objectives", spec.kind, spec.options), spec.weight, gather=spec.gather) for spec in stage.objectives]
    return make_drawing("schemes", stage.scheme, task, source, student, teacher, terms, task, example, facts)


def _kinds(tree: Any) -> list[str]:
    """The names of a part and of the parts among its options."""
    if isinstance(tree, dict):
        return [str(tree["kind"]), *_kinds(list(tree.values()))] if "kind" in tree else _kinds(list(tree.values()))
    return [kind for one in tree for kind in _kinds(one)] if isinstance(tree, list) else []


def stage_hashes(recipe: Recipe, name: str, task: Task, digests: Mapping[str, str]) -> tuple[str, str]:
    """Return a stage's hash, and its hash without the epochs: two stages that agree in the second differ only in how long they train.

    Both hold the resolved options, the parents' content, the data's fingerprint, limbeck's version and the source of every `python:` part;
    neither devices, threads, paths nor names.
    """
    stage = recipe.stages[name]
    task_part = task_of(recipe, name)
    kinds = [task_part.kind]
    told: dict[str, Any] = {"kind": stage.kind, "seed": recipe.seed, "version": VERSION, "task": _task(task_part, task)}
    if isinstance(stage, TrainStage):
        plain = stage.model_dump(mode="json", exclude={"model", "init", "task", "objectives", "transfer", "scheme", "teacher", *_NO_MATTER})
        told |= {"training": plain, "transfer": drawing("transfer", stage.transfer, task, digests), "scheme": drawing("schemes", stage.scheme, task, digests)}
        told["model"] = identity(full("models", stage.model)) if stage.model is not None else digests[str(stage.init)]
        told |= {"begins": digests[stage.init]} if stage.model is not None and stage.init is not None else {}
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
    elif isinstance(stage, GivenStage) and stage.path is not None:
        told = {"kind": stage.kind, "artifact": Artifact.open(stage.path, verify=False).digest}
    elif isinstance(stage, GivenStage) and stage.model is not None:
        told["model"] = identity(full("models", stage.model))
    elif isinstance(stage, CompressStage):
        part = graph_part("compress", stage.method)
        told |= {"of": digests[stage.of], "method": full("compress", part)}
        kinds += [kind for kind in _kinds(part.model_dump()) if kind.startswith("python:")]
    elif isinstance(stage, ChooseStage):
        told |= stage.model_dump(mode="json", exclude={"of", "than"}) | {"of": [digests[one] for one in stage.of]}
        told["than"] = digests[stage.than] if stage.than else None
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
    told["sources"] = [] if isinstance(stage, GivenStage) else [lookup.source_digest(kind) for kind in kinds]
    whole = digest(told)
    if isinstance(stage, TrainStage):
        told["training"] = {key: value for key, value in told["training"].items() if key != "epochs"}
    return whole, digest(told)
