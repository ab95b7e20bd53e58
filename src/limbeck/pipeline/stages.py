"""What each kind of stage does: artifacts in, one artifact out."""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..bridges import onnx_runtime
from ..core import lookup
from ..core.artifact import Artifact, Kind, seal
from ..core.errors import MismatchError
from ..core.events import Listener, Note, StageStarted
from ..core.files import atomic_folder, storage, write_json
from ..core.graph import Compressor, Exporter
from ..core.task import Loader, Task
from ..engine import checkpoint
from ..engine.evaluate import Predictions, predict
from ..engine.loop import Fit, Work, fit, steps_per_epoch
from ..engine.runtime import Runtime
from ..export import Tolerance, parity
from ..measure.fidelity import fidelity
from ..measure.size import file_bytes, macs, parameters
from .modules import load_module, read_tensors
from .recipe import DistillStage, ExportStage, QuantizeStage, Recipe, TrainStage
from .resolve import graph_part, make_model, make_scheme, make_task, model_spec

__all__ = ["Job", "run_stage"]

GOLDEN = 8
"""How many inputs and answers an artifact keeps as its golden ones."""


@dataclass(frozen=True)
class Job:
    """One stage to run: what it is, what it takes, where it goes."""

    recipe: Recipe
    name: str
    out: Path
    stage_hash: str
    lineage: Mapping[str, Any]
    work: Path

    @property
    def target(self) -> Path:
        return self.out / "stages" / self.name

    def parent(self, name: str) -> Artifact:
        return Artifact.open(self.out / "stages" / name)


def run_stage(job: Job, task: Task, listener: Listener) -> None:
    """Run a stage and put its artifact in its place."""
    stage, spec = job.recipe.stages[job.name], job.recipe.runtime
    if isinstance(stage, TrainStage):
        runtime = Runtime(accelerator=spec.accelerator, devices=spec.devices, precision=stage.precision)
        with runtime.relayed(listener) as tell:
            runtime.launch(_train, job, tell)
    elif isinstance(stage, ExportStage):
        _export(job, stage, task, listener)
    else:
        _quantize(job, stage, task, listener)


def _train(runtime: Runtime, job: Job, listener: Listener) -> None:
    """Train on one rank; the first one publishes."""
    if job.recipe.runtime.threads is not None:
        torch.set_num_threads(job.recipe.runtime.threads)
    stage = job.recipe.stages[job.name]
    assert isinstance(stage, TrainStage)
    task = make_task(job.recipe)
    seed = job.recipe.seed
    if runtime.device.type != "cpu" and runtime.is_main:
        listener(Note(f"training on {runtime.device}", job.name))
    torch.manual_seed(seed)
    if stage.init is not None:
        start = job.parent(stage.init)
        student, how = load_module(start), start.spec
    else:
        assert stage.model is not None
        how = model_spec(stage.model, task.facts())
        student = make_model(how)
    teachers = [load_module(job.parent(one)) for one in stage.teacher.stages] if isinstance(stage, DistillStage) else []
    if stage.channels_last:
        student, *teachers = (_channels_last(model) for model in (student, *teachers))
    transfer = lookup.build("transfer", stage.transfer.kind, stage.transfer.options)
    loader: Loader = transfer.loader(
        task, batch_size=_micro_batch(stage, runtime.world), seed=seed, rank=runtime.rank, world=runtime.world, device=runtime.device
    )
    example = next(iter(loader.batches(0)))
    student.to(runtime.device)
    for teacher in teachers:
        teacher.to(runtime.device)
    scheme = make_scheme(stage, student, teachers, task, task.facts(), example)
    torch.manual_seed(seed + 1 + runtime.rank)
    if runtime.is_main:
        listener(StageStarted(job.name, stage.kind, stage.epochs * steps_per_epoch(loader, stage)))
    began = time.monotonic()
    watch = listener if runtime.is_main else _deaf
    work = Work(job.work, job.out / "logs" / job.name, job.recipe.runtime.tensorboard)
    result = fit(scheme, task, loader, stage, runtime, work=work, listener=watch, stage=job.name)
    if runtime.is_main:
        _publish_module(job, stage, task, scheme.shipped()["student"], how, result, time.monotonic() - began, runtime.device)
    runtime.barrier()


def _deaf(_event: object) -> None:
    """Ranks other than the first tell nobody anything."""


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _micro_batch(stage: TrainStage, world: int) -> int:
    shares = stage.accumulate * world
    if stage.batch_size % shares:
        raise MismatchError(
            f"batch_size {stage.batch_size} does not divide into {stage.accumulate} micro-batches on {world} devices: "
            f"take a multiple of {shares}, such as {max(1, round(stage.batch_size / shares)) * shares}"
        )
    return stage.batch_size // shares


def _publish_module(
    job: Job, stage: TrainStage, task: Task, model: nn.Module, how: Mapping[str, Any], result: Fit, seconds: float, device: torch.device
) -> None:
    facts = task.facts()
    last = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    best = result.best["student"]
    chosen = best if stage.select == "best" else last
    model.load_state_dict(chosen)
    model.eval()
    metrics: dict[str, Any] = {"epochs": len(result.history), "best_epoch": result.best_epoch, "train_seconds": seconds}
    metrics["steps_per_s"] = result.steps / seconds if seconds > 0 else 0.0
    for name, value in result.history[result.best_epoch - 1].items() if result.best_epoch else ():
        if name.startswith("validation_"):
            metrics[name] = value
            metrics[f"{name}_last"] = result.history[-1][name]
    example = torch.zeros(1, *facts.in_shape, device=device)
    metrics |= {"parameters": parameters(model), "macs": macs(model, example)}

    def answer(inputs: Tensor) -> Tensor:
        return task.forward(model, {"input": inputs}).main.logits

    with atomic_folder(job.target) as folder:
        with storage(folder):
            save_file(best, folder / "best.safetensors")
            save_file(last, folder / "last.safetensors")
            os.link(folder / f"{stage.select}.safetensors", folder / "model.safetensors")
            write_json(folder / "history.json", {"epochs": result.history})
            state = checkpoint.latest(job.work / "checkpoints")
            assert state is not None
            shutil.copytree(state, folder / "checkpoint" / state.name)
        spec = {**how, "classes": facts.classes, "class_names": list(facts.class_names), "in_shape": list(facts.in_shape), "preprocess": dict(facts.preprocess)}
        _finish(job, folder, task, answer, "module", "model.safetensors", spec, metrics, device)


def _finish(
    job: Job, folder: Path, task: Task, answer: Callable[[Tensor], Tensor], kind: Kind, model: str, spec: Mapping[str, Any], metrics: dict[str, Any],
    device: torch.device | None = None,
) -> None:  # fmt: skip
    """Open the test split, once; keep golden answers; write lineage, recipe and manifest."""
    inputs = real_inputs(task, GOLDEN, device)
    with torch.no_grad():
        save_file({"inputs": inputs.cpu().contiguous(), "outputs": answer(inputs).float().cpu().contiguous()}, folder / "golden.safetensors")
    if "test" in task.splits():
        said = predict(answer, task, "test", device=device)
        save_file({"logits": said.logits.contiguous(), "labels": said.labels.contiguous(), "ids": said.ids.contiguous()}, folder / "predictions.safetensors")
        metrics |= fidelity(said.logits, said.labels, _teacher_logits(job, said))
    write_json(folder / "lineage.json", dict(job.lineage))
    (folder / "recipe.yaml").write_text(job.recipe.as_yaml())
    seal(folder, name=job.name, kind=kind, model=model, stage_hash=job.stage_hash, spec=spec, metrics=metrics)


def _teacher_logits(job: Job, said: Predictions) -> Tensor | None:
    """Return what the teacher at the head of this stage's line said of the test split, where one model taught it."""
    name = job.name
    while not isinstance(stage := job.recipe.stages[name], TrainStage):
        name = stage.of
    if not isinstance(stage, DistillStage) or len(stage.teacher.stages) != 1:
        return None
    told = read_tensors(job.parent(stage.teacher.stages[0]).path / "predictions.safetensors")
    return told["logits"] if torch.equal(told["ids"], said.ids) else None


def real_inputs(task: Task, count: int, device: torch.device | None = None) -> Tensor:
    """Return the first inputs of the training split's first epoch `[count, ...]`, all there are where there are fewer."""
    count = min(count, task.facts().examples)
    batch = task.batch(next(iter(task.loader("train", batch_size=count, device=device).batches(0))))
    return batch["input"]


def _export(job: Job, stage: ExportStage, task: Task, listener: Listener) -> None:
    listener(StageStarted(job.name, stage.kind))
    source = job.parent(stage.of)
    model = load_module(source)
    part = graph_part("export", stage.format)
    exporter: Exporter = lookup.build("export", part.kind, part.options)
    inputs = real_inputs(task, stage.inputs)
    if len(inputs) < 256:
        listener(Note(f"parity is checked on {len(inputs)} inputs, all that was asked for or is there", job.name, loud=True))
    with atomic_folder(job.target) as folder:
        path = folder / exporter.file
        exporter.export(model, inputs[:2], path)
        with torch.no_grad():
            reference = task.forward(model, {"input": inputs}).main.logits
        session = onnx_runtime.session(path)
        found = parity(reference, onnx_runtime.run(session, inputs))
        found.check(Tolerance(max_abs=stage.tolerance))
        metrics = {"file_bytes": file_bytes(path), "parameters": source.metrics["parameters"], "macs": source.metrics["macs"], **found.metrics()}
        _finish(job, folder, task, lambda given: onnx_runtime.run(session, given), "graph", exporter.file, {**source.spec, "format": part.kind}, metrics)


def _quantize(job: Job, stage: QuantizeStage, task: Task, listener: Listener) -> None:
    listener(StageStarted(job.name, stage.kind))
    source = job.parent(stage.of)
    part = graph_part("compress", stage.method)
    compressor: Compressor = lookup.build("compress", part.kind, part.options)
    inputs = real_inputs(task, max(stage.inputs, 1024))
    with atomic_folder(job.target) as folder:
        path = folder / source.model_file.name
        decided = compressor.compress(source.model_file, path, inputs)
        session = onnx_runtime.session(path)
        seen = inputs[: max(stage.inputs, 256)]
        found = parity(onnx_runtime.run(source.model_file, seen), onnx_runtime.run(session, seen), quantized=True)
        found.check(Tolerance(agreement=stage.min_agreement, sqnr_db=stage.min_sqnr_db))
        write_json(folder / "quantization.json", decided)
        metrics: dict[str, Any] = {
            "file_bytes": file_bytes(path),
            "parameters": source.metrics["parameters"],
            "macs": source.metrics["macs"],
            **found.metrics(),
        }
        _finish(job, folder, task, lambda given: onnx_runtime.run(session, given), "graph", path.name, {**source.spec, "method": part.kind}, metrics)


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures among metrics."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and math.isfinite(value)}
