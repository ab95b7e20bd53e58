"""Everything about a recipe that can be found wrong without training."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.bridges.vocabulary import differ
from limbeck.compress.prune.gradual import Gradual
from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError, StorageError, did_you_mean
from limbeck.core.events import Listener, Note, silent
from limbeck.core.files import storage
from limbeck.core.objective import Term
from limbeck.core.task import Task
from limbeck.engine.loop import optimizers, steps_per_epoch
from limbeck.engine.runtime import Runtime
from limbeck.measure.size import parameters
from limbeck.models._as_hf import as_hf
from limbeck.schemes._checks import compares

from .assemble import assemble
from .brought import brought
from .compressed import method_of
from .grown import begun, grown
from .learnt import objectives_of
from .modules import inputs_of, load
from .pretrained import lasting, leaves_folder, remarks
from .recipe import ChooseStage, CompressStage, DistillStage, ExportStage, GivenStage, Part, QuantizeStage, Recipe, TrainStage, load_recipe
from .resolve import full, graph_part, make_model, make_tasks, model_spec, partner_of, reads_as_partner, writes

__all__ = ["check", "check_recipe", "check_room"]

_ROOM = 64 << 20
"""Bytes that a run needs at the least for what it writes beside weights."""


def check(source: str | Path | Mapping[str, Any] | Recipe, *, sets: Iterable[str] = (), listener: Listener = silent) -> list[str]:
    """Check a recipe whole and return a line for each thing that was found right.

    The data are read, every model is built, every scheme is bound with one real batch, and every exporter and compressor is made.
    Nothing is trained or written.

    Raises:
        LimbeckError: the first thing that is wrong, in one line.
    """
    recipe = load_recipe(source, sets)
    return check_recipe(recipe, make_tasks(recipe), listener)


def check_recipe(recipe: Recipe, tasks: Mapping[str, Task], listener: Listener) -> list[str]:
    """Check a recipe that was read, on its stages' tasks."""
    spec = recipe.runtime
    said: list[str] = []
    for task in dict.fromkeys(tasks.values()):
        facts, whose = task.facts(), [name for name in recipe.stages if tasks[name] is task]
        shape = "x".join(str(size) for size in facts.in_shape)
        said.append(f"task of {', '.join(whose)}: {facts.examples} training examples of {shape}, {facts.classes} classes, splits {', '.join(task.splits())}")
        if "validation" not in task.splits():
            listener(Note(f"no validation split for {', '.join(whose)}: the last epoch is what is kept and reported"))
    models: dict[str, nn.Module] = {}
    given: dict[str, Artifact] = {}
    how: dict[str | None, Mapping[str, Any]] = {}
    with torch.random.fork_rng(devices=[]):
        for name, stage in recipe.stages.items():
            if isinstance(stage, TrainStage):
                runtime = Runtime(accelerator=spec.accelerator, devices=spec.devices, precision=stage.precision)
                facts = tasks[name].facts()
                if stage.model is not None:
                    how[name] = model_spec(stage.model, facts) | {"class_names": facts.class_names}
                    models[name] = make_model(how[name])
                    said += [f"stage {name}: {begun(models[name], _of(models, stage.init), stage.init)}"] if stage.init else []
                else:
                    how[name], models[name] = how.get(stage.init, {}), _of(models, str(stage.init))
                if how[name]:  # a player's is known when it has run
                    models[name], how[name] = grown(models[name], how[name], facts)
                _check_inputs(name, stage, tasks[name], tasks, given)
                _check_selection(recipe, name, stage)
                first, *more = _trains(recipe, name, stage, tasks[name], models, given, listener)
                said += [f"stage {name}: {first} on {spec.devices} x {runtime.fabric.device.type}", *(f"stage {name}: {line}" for line in more)]
            elif isinstance(stage, GivenStage) and stage.model is not None:
                models[name] = brought(stage.model, tasks[name])
                how[name] = lasting(models[name], model_spec(stage.model, tasks[name].facts()))
                said += [f"stage {name}: {stage.model.kind}, {parameters(models[name]):,} parameters, as it comes", *remarks(models[name])]
            elif isinstance(stage, GivenStage) and stage.path is not None:
                given[name] = Artifact.open(stage.path)
                models[name], how[name] = load(stage.path), given[name].spec
                said.append(f"stage {name}: the {given[name].kind} {given[name].name} of {stage.path.parent.parent}")
            elif isinstance(stage, CompressStage):
                kind, _ = method_of(stage.method)
                models[name], how[name] = _of(models, stage.of), how.get(stage.of, {})  # of the same layers, though fewer units
                said.append(f"stage {name}: {stage.of} by {kind}")
            elif isinstance(stage, ChooseStage):
                if "validation" not in tasks[name].splits():
                    raise MismatchError(f"stage {name} chooses on the validation split, and there is none: set the task's `validation` above 0")
                if stage.of[0] in models:
                    models[name], how[name] = models[stage.of[0]], how.get(stage.of[0], {})
                said.append(f"stage {name}: the smallest of {', '.join(stage.of)}")
            elif isinstance(stage, ExportStage):
                part = graph_part("export", stage.format)
                source = _of(models, stage.of)
                if len(inputs := inputs_of(source)) > 1:
                    raise MismatchError(
                        f"stage {name} exports {stage.of}, a {type(source).__name__} that takes {', '.join(inputs)}, and an exported file takes one "
                        "input: leave the stage out, or export a model that takes the input alone"
                    )
                lookup.build("export", part.kind, part.options)
                models[name] = as_hf(source) if leaves_folder(part) else source
                said.append(f"stage {name}: {stage.of} as {part.kind}")
            elif isinstance(stage, QuantizeStage):
                part = graph_part("compress", stage.method)
                lookup.build("compress", part.kind, part.options)
                said.append(f"stage {name}: {stage.of} by {part.kind}")
    return said


def _check_selection(recipe: Recipe, name: str, stage: TrainStage) -> None:
    """Refuse to choose an epoch by validation where the first ones are of a denser model than is asked for."""
    start = recipe.stages.get(stage.init or "")
    if not isinstance(start, CompressStage) or (stage.select == "last" and not stage.early_stopping):
        return
    _, surgery = method_of(start.method)
    if isinstance(surgery, Gradual):
        settled = surgery.settled({"end": surgery.end}, stage.epochs)
        raise MismatchError(
            f"stage {name} is pruned while it trains until epoch {settled} of {stage.epochs} (prune.gradual), and the best epoch by validation may be of a "
            "denser model: select: last, without early_stopping"
        )


def _of(models: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The model that a stage, or a stage's player, would ship."""
    if name not in models:
        stage = name.partition(".")[0]
        players = [one.removeprefix(f"{stage}.") for one in models if one.startswith(f"{stage}.")]
        raise MismatchError(f"stage {stage!r} ships no player {name.partition('.')[2]!r} beside its student{did_you_mean(name.partition('.')[2], players)}")
    return models[name]


_PREPARED = ("kind", "mode", "size", "scale", "rate", "samples", "mels", "window", "hop")
"""What a model's inputs must have in common with those that it was trained on."""
_FAR = 0.05
"""Deviations by which the means, and shares by which the deviations, of two preparations may differ: a subset of the data has others than the whole."""


def _check_inputs(name: str, stage: TrainStage, task: Task, tasks: Mapping[str, Task], given: Mapping[str, Artifact]) -> None:
    """Refuse a teacher that is asked about inputs prepared otherwise than those that it was trained on."""
    if stage.transfer.of is not None and writes(stage.transfer):
        writer = stage.transfer.of.partition(".")[0]
        seen = given[writer].spec.get("preprocess", {}) if writer in given else tasks[writer].facts().preprocess
        if told := differ(seen, task.facts().preprocess):
            raise MismatchError(
                f"the writer {stage.transfer.of} of stage {name} and its task have other vocabularies, {told}: what it writes would spell something else; "
                "give both one tokenizer, or teach token by token with objectives.sequence.uld"
            )
    if not isinstance(stage, DistillStage) or (stage.teacher.options.get("input", "input") != "input" and stage.transfer.partner is None):
        return
    partner, own = partner_of(stage.transfer, task), reads_as_partner(stage.teacher)
    asked = (partner or task).facts().preprocess
    words = asked if own or stage.teacher.options.get("input", "input") != "input" else task.facts().preprocess
    if own and partner is None:
        return  # which making the teacher says
    if own and differ(words, task.facts().preprocess):
        _check_own(name, stage)
    for one in stage.teacher.stages:
        first = one.partition(".")[0]
        seen = given[first].spec.get("preprocess", {}) if first in given else tasks[first].facts().preprocess
        if told := differ(seen, words):
            raise MismatchError(
                f"the teacher {one} of stage {name} and the text it is asked about have other vocabularies, {told}: give both one tokenizer, or let each read "
                "its own, transfer: {kind: retokenized, partner: the teacher's task}, teacher: {kind: own_tokens, of: ...}, with objectives.sequence.uld or "
                "sequence.aligned"
            )
        if key := _differs(seen, asked):
            raise MismatchError(
                f"the teacher {one} of stage {name} was trained on inputs with {key} {seen[key]!r}, and is asked about inputs with {key} {asked[key]!r}: "
                "give both the same task (a stage's `task` adds to the recipe's; an option is taken back by `null`)"
            )


def _check_own(name: str, stage: DistillStage) -> None:
    """Refuse an objective that compares class by class what two vocabularies know."""
    for spec in stage.objectives:
        kind = lookup.full_name("objectives", spec.kind)
        if kind.startswith("response."):
            raise MismatchError(
                f"{kind} of stage {name} compares class by class, and student and teacher have other vocabularies: take objectives.sequence.uld (by rank) or "
                "objectives.sequence.aligned (by bytes)"
            )


def _differs(seen: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first thing in which two preparations differ by more than a subset of the data does."""
    for key in _PREPARED:
        if key in seen and key in asked and seen[key] != asked[key]:
            return key
    if "mean" not in seen or "mean" not in asked or len(seen["mean"]) != len(asked["mean"]):
        return "mean" if "mean" in seen and "mean" in asked else None
    for a, b, s, z in zip(seen["mean"], asked["mean"], seen["std"], asked["std"], strict=True):
        if abs(a - b) > _FAR * s:
            return "mean"
        if abs(s - z) > _FAR * s:
            return "std"
    return None


def _trains(
    recipe: Recipe, name: str, stage: TrainStage, task: Task, models: dict[str, nn.Module], given: Mapping[str, Artifact], listener: Listener
) -> list[str]:
    """Bind a training stage's scheme with one real batch, as training will, and say what it comes to; its models are what the stage would ship."""
    teachers = [_of(models, one) for one in stage.teacher.stages] if isinstance(stage, DistillStage) else []
    for slot, drawing in (("transfer", stage.transfer), ("schemes", stage.scheme)):
        full(slot, Part(kind=drawing.kind, **drawing.options))
        if drawing.of is not None and drawing.of not in given and not (slot == "transfer" and writes(stage.transfer)):
            return [f"{stage.kind} {parameters(models[name]):,} parameters for {stage.epochs} epochs, put together when {drawing.of} has run"]
    writer = _of(models, stage.transfer.of) if stage.transfer.of and writes(stage.transfer) else None
    made = assemble(name, stage, models[name], teachers, task, seed=recipe.seed, sources=given, writer=writer, world=recipe.runtime.devices)
    scheme = made.scheme
    optimizers(scheme, stage)
    steps = steps_per_epoch(made.loader, stage)
    for term in (module for module in scheme.modules() if isinstance(module, Term) and compares(module.objective)):
        shares = stage.accumulate * (1 if term.gather else recipe.runtime.devices)
        if shares > 1:
            told = f"{type(term.objective).__name__} compares examples within a batch: {shares} micro-batches change what it means"
            listener(Note(told if term.gather or stage.accumulate > 1 else f"{told}; gather: true compares those of all devices", name, loud=True))
    shipped = scheme.shipped()
    models |= {name if player == "student" else f"{name}.{player}": model for player, model in shipped.items()}
    decided = dict.fromkeys(line for objective in objectives_of(scheme) for line in objective.said)
    return [f"{stage.kind} {parameters(models[name]):,} parameters for {stage.epochs} epochs of {steps} steps", *decided]


def check_room(out: Path) -> None:
    """Refuse a folder that cannot be written, or a disk that is all but full, before anything is trained.

    Raises:
        StorageError: with the folder, what is free, and the way out.
    """
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if free < _ROOM:
        raise StorageError(f"only {free >> 20} MiB are free for {out}: free some, or choose another folder with --out")
