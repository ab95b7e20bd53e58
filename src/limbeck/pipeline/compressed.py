"""What compresses a module, and chooses among what came of it: by the stages `compress` and `choose`, or in one call."""

import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from limbeck.compress import Bench, Compressor, Held, Operated, Packer, Surgery, plain
from limbeck.core import lookup
from limbeck.core.artifact import Artifact, seal
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.events import Listener, Note
from limbeck.core.files import atomic_folder, storage, write_json
from limbeck.core.task import Task
from limbeck.engine.checkpoint import seed_everything
from limbeck.engine.evaluate import evaluate
from limbeck.engine.runtime import Accelerator, Runtime
from limbeck.measure.latency import ModelFile, measure_files
from limbeck.measure.size import macs, parameters, weights_left

from .modules import load_module, taken, takes
from .publish import Publication, real_batch, seal_with_proof
from .recipe import ChooseStage, CompressStage, Part, Recipe, TrainStage
from .resolve import graph_part

__all__ = ["bench_of", "choose_stage", "compress_stage", "held", "method_of", "shrink", "validated"]


def method_of(method: str | Part) -> tuple[str, Surgery | Packer]:
    """Make a stage's surgery or packer; return its name too.

    Raises:
        RecipeError: a part of the slot that works on files, or is a choice within a surgery.
    """
    part = graph_part("compress", method)
    made = lookup.build("compress", part.kind, part.options)
    if not isinstance(made, (Surgery, Packer)):
        way = (
            "a choice within a surgery, such as prune.weights"
            if not isinstance(made, Compressor)
            else "for exported files: {kind: quantize, of: ..., method: ...}"
        )
        raise RecipeError(f"compress.{part.kind} makes no smaller module of a module; it is {way}")
    return part.kind, made


def bench_of(task: Task, runtime: Runtime, seed: int) -> Bench:
    """Return what a method may ask about models of a task, on a device."""
    example = real_batch(task, 1, runtime.device)

    def count(model: nn.Module) -> int:
        return macs(model, example["input"], ask=lambda asked: task.forward(asked, example).main)

    def latency(model: nn.Module) -> float:
        with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
            file = Path(folder, "model.onnx")
            inputs = {name: value.cpu() for name, value in taken(task, model, example).items()}
            lookup.build("export", "onnx", {}).export(copy.deepcopy(model).cpu(), inputs, file)
            kind = takes(inputs).get("input", "float32")
            return measure_files({"model": ModelFile(file, task.facts().in_shape, kind)}, seconds=1.0)["models"]["model"]["latency_ms_p50"]

    def score(model: nn.Module) -> float:
        if "validation" not in task.splits():
            raise DataError("this method judges by the validation split, and there is none: set the task's `validation` above 0")
        found = evaluate(model, task, "validation", runtime)[task.metric]
        return found if task.higher_is_better else -found

    return Bench(task, count, latency, score, seed, runtime.device)


def validated(model: nn.Module, task: Task, runtime: Runtime) -> dict[str, float]:
    """Return a model's validation metrics under the names that a trained one's have; none where there is no validation split."""
    if "validation" not in task.splits():
        return {}
    return {f"validation_{name}": value for name, value in evaluate(model, task, "validation", runtime).items()}


def held(model: nn.Module, spec: Mapping[str, Any]) -> nn.Module:
    """Make sure that training keeps what surgeries made of a model, as its spec tells of them; return it."""
    for change in spec.get("changes", ()):
        if "surgery" in change and issubclass(surgery := lookup.find("compress", change["surgery"]), Held):
            surgery.hold(model, change["record"])
    return model


@dataclass(frozen=True)
class _Done:
    model: nn.Module
    changes: list[Mapping[str, Any]]
    operated: Operated


def _operate(kind: str, surgery: Surgery, model: nn.Module, changes: Sequence[Mapping[str, Any]], bench: Bench) -> _Done:
    done = surgery.operate(model.eval(), bench)
    told = [*changes, {"surgery": kind, "record": dict(done.record)}]
    return _Done(done.model.eval(), told if _prepared(done.model) else _lasting(told), done)


def _prepared(model: nn.Module) -> bool:
    """Whether a model carries what only its training needs."""
    return any(parametrize.is_parametrized(module) for module in model.modules())


def _lasting(changes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for one in changes if "surgery" not in one or lookup.find("compress", one["surgery"]).lasts]


def compress_stage(
    name: str, stage: CompressStage, source: Artifact, task: Task, told: Publication, accelerator: Accelerator, seed: int, listener: Listener
) -> None:
    """Run a surgery, or a packer, on a trained module and publish what came of it."""
    kind, method = method_of(stage.method)
    runtime = Runtime(accelerator=accelerator)
    seed_everything(seed)
    model, spec = load_module(source).to(runtime.device), {key: value for key, value in source.spec.items() if key not in ("packed", "format")}
    with atomic_folder(told.target) as folder:
        if isinstance(method, Surgery):
            done = _operate(kind, method, model, spec.get("changes", ()), bench_of(task, runtime, seed))
            for line in done.operated.said:
                listener(Note(line, name))
            made, spec = done.model, spec | {"changes": done.changes}
            metrics: dict[str, Any] = {"parameters": parameters(made), **done.operated.metrics}
            decided: dict[str, Any] = {"method": kind, "layers": [dict(row) for row in done.operated.layers], "said": list(done.operated.said)}
            file = "model.safetensors"
            with storage(folder):
                save_file({key: value.detach().cpu().clone().contiguous() for key, value in made.state_dict().items()}, folder / file)
        else:
            made, file = plain(model), method.file
            decided = {"method": kind, **method.pack(copy.deepcopy(made).cpu(), folder / file)}
            made.load_state_dict(method.unpack(folder / file))  # what was packed is what is judged
            spec |= {"changes": _lasting(spec.get("changes", ())), "packed": kind}
            metrics = {"parameters": parameters(made), "file_bytes": (folder / file).stat().st_size}
        example = real_batch(task, 1, runtime.device)
        metrics |= {"weights_left": weights_left(made)}
        metrics |= {"macs": macs(made, example["input"], ask=lambda asked: task.forward(asked, example).main)} | validated(made, task, runtime)
        write_json(folder / "compression.json", decided)
        seal_with_proof(told, folder, task, partial(task.forward, made), "module", file, spec, metrics, runtime.device)


def choose_stage(recipe: Recipe, name: str, found: Mapping[str, Artifact], task: Task, told: Publication, listener: Listener) -> None:
    """Copy the artifact of the smallest model that is hardly worse than another, and say what was compared.

    Raises:
        MismatchError: an artifact without the figures to choose by, or none that is good enough.
    """
    stage, metric = recipe.stages[name], f"validation_{task.metric}"
    assert isinstance(stage, ChooseStage)
    figures = {one: artifact.metrics for one, artifact in found.items()}
    for one in found:  # of a stage that keeps its last epoch, the last epoch's
        if isinstance(trained := recipe.stages[one.partition(".")[0]], TrainStage) and trained.select == "last" and f"{metric}_last" in figures[one]:
            figures[one][metric] = figures[one][f"{metric}_last"]
    for one in found:
        lacking = [figure for figure in (metric, *((stage.by,) if one in stage.of else ())) if figure not in figures[one]]
        if lacking:
            raise MismatchError(f"stage {name!r} chooses by {metric} and {stage.by}, and {one!r} has no {', '.join(lacking)}: name another figure, or stage")
    sign = 1 if task.higher_is_better else -1
    best = figures[stage.than][metric] if stage.than else sign * max(sign * figures[one][metric] for one in stage.of)
    good = [one for one in stage.of if sign * (best - figures[one][metric]) <= stage.within]
    rows = [{"name": one, metric: figures[one][metric], stage.by: figures[one][stage.by], "within": one in good} for one in stage.of]
    if not good:
        nearest = max(stage.of, key=lambda one: sign * figures[one][metric])
        raise MismatchError(
            f"none of {', '.join(stage.of)} has a {metric} within {stage.within:g} of {stage.than}'s {best:g}: the nearest is {nearest} with "
            f"{figures[nearest][metric]:g}; allow more (`within`), or make less small"
        )
    taken = min(good, key=lambda one: (figures[one][stage.by], -sign * figures[one][metric]))
    listener(Note(f"{taken} is taken: {stage.by} {figures[taken][stage.by]:,}, {metric} {figures[taken][metric]:.4f} beside {best:.4f}", name))
    with atomic_folder(told.target) as folder:
        shutil.copytree(found[taken].path, folder, dirs_exist_ok=True)
        for part in ("manifest.json", "choice.json"):
            (folder / part).unlink(missing_ok=True)
        write_json(folder / "choice.json", {"taken": taken, "metric": metric, "by": stage.by, "than": best, "within": stage.within, "candidates": rows})
        write_json(folder / "lineage.json", dict(told.lineage))
        (folder / "recipe.yaml").write_text(told.recipe)
        old = found[taken]
        seal(folder, name=told.name, kind=old.kind, model=old.manifest["model"], stage_hash=told.stage_hash, spec=old.spec, metrics=old.metrics)


def shrink(model: nn.Module, data: Task, method: Surgery, *, seed: int = 0, accelerator: Accelerator = "cpu") -> Operated:
    """Make a smaller module of a module in one call: `shrink(model, task, Channels(target={"macs": 0.25})).model`.

    The model that was given stays as it is. What comes is trained on by `limbeck.distill`, the given model its teacher; zeros that must stay zero are held.

    Args:
        model: any module that the task can ask.
        data: a task, whose training split the method may see, and whose validation split a method that judges by it.
        method: a surgery, with its options.
        seed: of every random choice.
        accelerator: cpu, cuda, mps, or auto.

    Raises:
        RecipeError, MismatchError, DataError: what cannot be reached, with the closest that can; a layer that cannot be changed, with why.
    """
    if not isinstance(method, Surgery):
        raise RecipeError(f"shrink takes a surgery, such as limbeck.compress.prune.weights.Weights(ratio=0.9), not a {type(method).__name__}")
    runtime = Runtime(accelerator=accelerator)
    seed_everything(seed)
    done = method.operate(copy.deepcopy(model).to(runtime.device).eval(), bench_of(data, runtime, seed))
    if isinstance(method, Held):
        method.hold(done.model, done.record)
    return done
