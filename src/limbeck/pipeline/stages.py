"""What each kind of stage does: artifacts in, one artifact out."""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress import Compressor
from limbeck.core import lookup
from limbeck.core.artifact import Artifact, Kind
from limbeck.core.events import Listener, Note, StageStarted
from limbeck.core.files import atomic_folder, write_json
from limbeck.core.task import Batch, Task
from limbeck.engine.checkpoint import seed_everything
from limbeck.engine.loop import Work, fit, steps_per_epoch
from limbeck.engine.runtime import Runtime
from limbeck.export import Exporter, Tolerance, parity
from limbeck.measure.size import file_bytes, parameters
from limbeck.models._as_hf import as_hf
from limbeck.models.hf import HF

from .assemble import assemble
from .authored import authored, place_of
from .brought import bring
from .compressed import choose_stage, compress_stage, held, validated
from .grown import begun, grown
from .learnt import graft_spec, objectives_of, take_over
from .modules import Graph, load, load_module, read_tensors, taken
from .pretrained import furnished, lasting, leaves_folder, opened, remarks, strange_words
from .publish import Publication, place, publish_players, real_batch, seal_with_proof
from .recipe import ChooseStage, CompressStage, DistillStage, ExportStage, GivenStage, Part, QuantizeStage, Recipe, TrainStage, origin, parents
from .recorded import stand
from .resolve import from_store, graph_part, make_model, make_tasks, model_spec, writes

__all__ = ["Job", "run_stage"]


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
        return Artifact.open(place(self.out, name))


def run_stage(job: Job, task: Task, listener: Listener) -> None:
    """Run a stage and put its artifact in its place."""
    stage, spec = job.recipe.stages[job.name], job.recipe.runtime
    if isinstance(stage, TrainStage):
        runtime = Runtime(accelerator=spec.accelerator, devices=spec.devices, precision=stage.precision)
        if writes(stage.transfer):
            _authored(job, stage, task, runtime.device, listener)
        store = _store(job, stage, task, runtime.device, listener) if isinstance(stage, DistillStage) and from_store(stage.teacher) else None
        with runtime.relayed(listener) as tell:
            runtime.launch(_with_threads, job, store, tell)
    elif isinstance(stage, GivenStage) and stage.model is not None:
        listener(StageStarted(job.name, stage.kind))
        with _threads(job):
            bring(job.name, stage.model, task, _publication(job), spec.accelerator, job.recipe.seed, listener)
    elif isinstance(stage, GivenStage):
        _given(job, stage, listener)
    elif isinstance(stage, CompressStage):
        listener(StageStarted(job.name, stage.kind))
        told, seed = _publication(job), job.recipe.seed
        with _threads(job):
            compress_stage(job.name, stage, job.parent(stage.of), task, told, spec.accelerator, seed, listener)
    elif isinstance(stage, ChooseStage):
        listener(StageStarted(job.name, stage.kind))
        choose_stage(job.recipe, job.name, {one: job.parent(one) for one in parents(stage)}, task, _publication(job), listener)
    elif isinstance(stage, ExportStage):
        _export(job, stage, task, listener)
    else:
        _quantize(job, stage, task, listener)


@contextmanager
def _threads(job: Job) -> Iterator[None]:
    """Compute with as many threads as the recipe asks for, and leave the process with as many as it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.recipe.runtime.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _store(job: Job, stage: DistillStage, task: Task, device: torch.device, listener: Listener) -> Path:
    """Make sure that what the stage's teacher says is recorded, before anything is trained and in one process."""
    source = job.parent(stage.transfer.of) if stage.transfer.of else None
    teacher, seed = job.parent(stage.teacher.stages[0]), job.recipe.seed + stage.reseed
    with _threads(job):
        return stand(
            job.name, stage, teacher, task, job.out, seed=seed, digests=job.lineage["parents"], source=source, device=device, listener=listener
        )  # fmt: skip


def _written(job: Job, stage: TrainStage, task: Task) -> Path | None:
    """Where what an earlier stage's model wrote for a stage is kept, None where none writes."""
    return place_of(stage, task, job.out, seed=job.recipe.seed + stage.reseed, digests=job.lineage["parents"]) if writes(stage.transfer) else None


def _authored(job: Job, stage: TrainStage, task: Task, device: torch.device, listener: Listener) -> None:
    """Make sure that the transfer set is written, before anything is trained and in one process."""
    folder = _written(job, stage, task)
    assert folder is not None and stage.transfer.of is not None
    with _threads(job):
        authored(job.name, stage, job.parent(stage.transfer.of), task, folder, seed=job.recipe.seed + stage.reseed, device=device, listener=listener)


def _with_threads(runtime: Runtime, job: Job, store: Path | None, listener: Listener) -> None:
    with _threads(job):
        _train(runtime, job, store, listener)


def _train(runtime: Runtime, job: Job, store: Path | None, listener: Listener) -> None:
    """Train on one rank; the first one publishes."""
    stage = job.recipe.stages[job.name]
    assert isinstance(stage, TrainStage)
    task = make_tasks(job.recipe)[job.name]
    seed = job.recipe.seed + stage.reseed
    if runtime.device.type != "cpu" and runtime.is_main:
        listener(Note(f"training on {runtime.device}", job.name))
    seed_everything(seed)
    begins: list[str] = []
    if stage.model is None:
        start = job.parent(str(stage.init))
        student, how = grown(load_module(start), {key: value for key, value in start.spec.items() if key not in ("packed", "format")}, task.facts())
    else:
        how = model_spec(stage.model, task.facts())
        student = make_model(how)
        begins += [told] if stage.model.kind == "hf" and (told := strange_words(how, task.facts())) else []
        how = lasting(student, how)
        begins += [begun(student, load_module(job.parent(stage.init)), stage.init)] if stage.init else []
    teachers = [load(job.parent(one).path) for one in stage.teacher.stages] if isinstance(stage, DistillStage) and store is None else []
    if stage.channels_last:
        student, *teachers = (_channels_last(model) for model in (student, *teachers))
    drawn = {one: job.parent(one) for one in (stage.transfer.of, stage.scheme.of) if one}
    held(student, how)
    where = {"rank": runtime.rank, "world": runtime.world, "device": runtime.device, "written": _written(job, stage, task)}
    made = assemble(job.name, stage, student, teachers, task, seed=seed, sources=drawn, store=store, **where)
    scheme, loader = made.scheme, made.loader
    sources = {one.init: (job.recipe.stages[one.init], job.parent(one.init)) for one in stage.objectives if one.init}
    told = begins + take_over(scheme, stage.objectives, {name: pair for name, pair in sources.items() if isinstance(pair[0], TrainStage)})  # pyright: ignore[reportArgumentType]
    told += [line for objective in objectives_of(scheme) for line in objective.said] + remarks(student)
    if isinstance(stage, DistillStage) and (graft := graft_spec(scheme, stage.objectives, [job.parent(one) for one in stage.teacher.stages])):
        how = {**how, "changes": [*how.get("changes", ()), {"graft": graft}]}
    seed_everything(seed + 1 + runtime.rank)
    if runtime.is_main:
        listener(StageStarted(job.name, stage.kind, stage.epochs * steps_per_epoch(loader, stage)))
        for line in told:
            listener(Note(line, job.name))
    watch = listener if runtime.is_main else _deaf
    work = Work(job.work, job.out / "logs" / job.name, job.recipe.runtime.tensorboard)
    result = fit(scheme, task, loader, stage, runtime, work=work, listener=watch, stage=job.name)
    if runtime.is_main:
        specs = {player: model_spec(Part.model_validate(told), task.facts()) for player, told in scheme.specs().items()}

        def leave(folder: Path, model: nn.Module) -> None:
            scheme.leave(folder)
            made.transfer.leave(folder, task, model)

        publish_players(_publication(job), stage, task, scheme.shipped(), {**specs, "student": how}, result, work.checkpoints, runtime.device, leave)
    runtime.barrier()


def _deaf(_event: object) -> None:
    """Ranks other than the first tell nobody anything."""


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _publication(job: Job) -> Publication:
    """Say what an artifact says of itself; its teacher is the one at the head of the stage's line, where one model taught it."""
    stage, teacher = job.recipe.stages[origin(job.recipe, job.name).partition(".")[0]], None
    if isinstance(stage, DistillStage) and len(stage.teacher.stages) == 1:
        said = job.parent(stage.teacher.stages[0]).path / "predictions.safetensors"
        teacher = read_tensors(said) if said.is_file() else None
    return Publication(job.target, job.name, job.stage_hash, job.lineage, job.recipe.as_yaml(), teacher)


def _given(job: Job, stage: GivenStage, listener: Listener) -> None:
    """Copy an artifact of another run, every byte compared with its manifest, under this stage's name and hash."""
    listener(StageStarted(job.name, stage.kind))
    assert stage.path is not None
    source = Artifact.open(stage.path)
    with atomic_folder(job.target) as folder:
        shutil.copytree(source.path, folder, dirs_exist_ok=True)
        write_json(folder / "manifest.json", {**source.manifest, "name": job.name, "stage_hash": job.stage_hash})


def _export(job: Job, stage: ExportStage, task: Task, listener: Listener) -> None:
    listener(StageStarted(job.name, stage.kind))
    source = job.parent(stage.of)
    model = load_module(source)
    part = graph_part("export", stage.format)
    exporter: Exporter = lookup.build("export", part.kind, part.options)
    whole = as_hf(model) if leaves_folder(part) else model
    batch = _real(task, stage.inputs)
    inputs = taken(task, model, batch)
    if (count := len(inputs["input"])) < 256:
        listener(Note(f"parity is checked on {count} inputs, all that was asked for or is there, or can be held", job.name, loud=True))
    with atomic_folder(job.target) as folder:
        path = folder / exporter.file
        exporter.export(whole, {name: value[:2] for name, value in inputs.items()}, path)
        spec = {**source.spec, "format": part.kind}
        spec = furnished(folder, whole, spec) if isinstance(whole, HF) else spec
        shipped = opened(folder, spec) if leaves_folder(part) else Graph(path)
        found = parity(_answers(task, model, batch), _answers(task, shipped, batch))
        found.check(Tolerance(max_abs=stage.tolerance))
        own = "main_" if "main_macs" in source.metrics and part.options.get("outputs") != "all" else ""  # exits are left behind
        sizes = {figure: source.metrics[f"{own}{figure}"] for figure in ("parameters", "macs")}
        sizes |= {"parameters": parameters(shipped)} if leaves_folder(part) else {}
        metrics = {"file_bytes": file_bytes(path), **sizes, **found.metrics(), **validated(shipped, task, Runtime())}
        kind: Kind = "module" if leaves_folder(part) else "graph"
        seal_with_proof(_publication(job), folder, task, partial(task.forward, shipped), kind, exporter.file, spec, metrics)


def _quantize(job: Job, stage: QuantizeStage, task: Task, listener: Listener) -> None:
    listener(StageStarted(job.name, stage.kind))
    source = job.parent(stage.of)
    part = graph_part("compress", stage.method)
    compressor: Compressor = lookup.build("compress", part.kind, part.options)
    batch = _real(task, max(stage.inputs, 1024))
    before = Graph(source.model_file)
    inputs = taken(task, before, batch)
    with atomic_folder(job.target) as folder:
        path = folder / source.model_file.name
        decided = compressor.compress(source.model_file, path, inputs["input"] if len(inputs) == 1 else inputs)
        seen = {name: value[: max(stage.inputs, 256)] for name, value in batch.items()}
        found = parity(_answers(task, before, seen), _answers(task, Graph(path), seen), quantized=True)
        classes = "link" not in source.spec  # the same top class is a figure of one class of several alone
        found.check(Tolerance(agreement=stage.min_agreement if classes else None, sqnr_db=stage.min_sqnr_db))
        write_json(folder / "quantization.json", decided)
        metrics: dict[str, Any] = {
            "file_bytes": file_bytes(path),
            "parameters": source.metrics["parameters"],
            "macs": source.metrics["macs"],
            **{name: value for name, value in found.metrics().items() if classes or name != "parity_agreement"},
            **validated(Graph(path), task, Runtime()),
        }
        spec = {**source.spec, "method": part.kind}
        seal_with_proof(_publication(job), folder, task, partial(task.forward, Graph(path)), "graph", path.name, spec, metrics)


_HELD = 1 << 24
"""Logits that parity holds of each side."""


def _real(task: Task, count: int) -> Batch:
    """So many real training inputs, fewer of tokens, each of which has logits of its own."""
    facts = task.facts()
    batch = real_batch(task, count)
    most = len(batch["input"]) if batch["input"].is_floating_point() else max(1, _HELD // (math.prod(facts.in_shape) * facts.classes))
    return {name: value[:most] for name, value in batch.items()}


@torch.no_grad()
def _answers(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """What a model says of a batch's predictions that count, `[N, C]`."""
    said = task.forward(model, batch)
    return said.main.logits if said.mask is None else said.main.logits[said.mask]
