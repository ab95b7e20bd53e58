"""Everything about a recipe that can be found wrong without training."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.core import lookup
from limbeck.core.errors import DataError, MismatchError, StorageError
from limbeck.core.events import Listener, Note, silent
from limbeck.core.files import storage
from limbeck.core.objective import Term
from limbeck.core.task import Task
from limbeck.engine.loop import optimizers, steps_per_epoch
from limbeck.engine.runtime import Runtime
from limbeck.measure.size import parameters

from .learnt import objectives_of
from .modules import inputs_of
from .recipe import DistillStage, ExportStage, QuantizeStage, Recipe, TrainStage, load_recipe
from .resolve import graph_part, make_model, make_scheme, make_tasks, model_spec
from .stages import micro_batch

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
    with torch.random.fork_rng(devices=[]):
        for name, stage in recipe.stages.items():
            if isinstance(stage, TrainStage):
                runtime = Runtime(accelerator=spec.accelerator, devices=spec.devices, precision=stage.precision)
                models[name] = models[stage.init] if stage.init else make_model(model_spec(stage.model, tasks[name].facts()))  # pyright: ignore[reportArgumentType]
                first, *more = _trains(recipe, name, stage, tasks[name], models, listener)
                said += [f"stage {name}: {first} on {spec.devices} x {runtime.fabric.device.type}", *(f"stage {name}: {line}" for line in more)]
            elif isinstance(stage, ExportStage):
                part = graph_part("export", stage.format)
                if len(inputs := inputs_of(models[stage.of])) > 1:
                    raise MismatchError(
                        f"stage {name} exports {stage.of}, a {type(models[stage.of]).__name__} that takes {', '.join(inputs)}, and an exported file takes one "
                        "input: leave the stage out, or export a model that takes the input alone"
                    )
                lookup.build("export", part.kind, part.options)
                said.append(f"stage {name}: {stage.of} as {part.kind}")
            elif isinstance(stage, QuantizeStage):
                part = graph_part("compress", stage.method)
                lookup.build("compress", part.kind, part.options)
                said.append(f"stage {name}: {stage.of} by {part.kind}")
    return said


def _trains(recipe: Recipe, name: str, stage: TrainStage, task: Task, models: dict[str, nn.Module], listener: Listener) -> list[str]:
    """Bind a training stage's scheme with one real batch, as training will, and say what it comes to; its model is what the stage would ship."""
    transfer = lookup.build("transfer", stage.transfer.kind, stage.transfer.options)
    loader = transfer.loader(task, batch_size=micro_batch(stage, recipe.runtime.devices), seed=recipe.seed)
    teachers = [models[one] for one in stage.teacher.stages] if isinstance(stage, DistillStage) else []
    first = next(iter(loader.batches(0)), None)
    if first is None:
        raise DataError(f"stage {name}: an epoch has no batch of {stage.batch_size}")
    scheme = make_scheme(stage, models[name], teachers, task, task.facts(), first)
    optimizers(scheme, stage)
    steps = steps_per_epoch(loader, stage)
    for term in (module for module in scheme.modules() if isinstance(module, Term) and module.objective.batchwise):
        shares = stage.accumulate * (1 if term.gather else recipe.runtime.devices)
        if shares > 1:
            told = f"{type(term.objective).__name__} compares examples within a batch: {shares} micro-batches change what it means"
            listener(Note(told if term.gather or stage.accumulate > 1 else f"{told}; gather: true compares those of all devices", name, loud=True))
    models[name] = scheme.shipped()["student"]
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
