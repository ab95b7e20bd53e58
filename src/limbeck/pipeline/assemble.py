"""A training stage's parts put together: teacher, transfer set and loader, scheme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.core.artifact import Artifact
from limbeck.core.errors import DataError, MismatchError
from limbeck.core.scheme import Scheme
from limbeck.core.task import Loader, Task
from limbeck.core.transfer import Transfer

from .recipe import DistillStage, TrainStage
from .resolve import make_drawing, make_scheme, make_teacher, partner_of

__all__ = ["Assembled", "assemble", "micro_batch"]


@dataclass(frozen=True)
class Assembled:
    """What a training stage trains, and on what; the scheme is bound by the first batch."""

    scheme: Scheme
    loader: Loader
    transfer: Transfer


def assemble(
    name: str,
    stage: TrainStage,
    student: nn.Module,
    models: Sequence[nn.Module],
    task: Task,
    *,
    seed: int,
    sources: Mapping[str, Artifact] | None = None,
    store: Path | None = None,
    writer: nn.Module | None = None,
    written: Path | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
) -> Assembled:
    """Put a stage's parts together; `models` are those of its teacher's stages, `sources` the artifacts that transfer set and scheme draw from, by stage.

    `writer` is the model that writes the transfer set, and `written` the folder of what it wrote, where it does.

    Raises:
        RecipeError, MismatchError, DataError: parts that do not fit, or an epoch without a batch.
    """
    if stage.early_stopping and "validation" not in task.splits():
        raise MismatchError("early_stopping watches the validation split, and there is none: set the task's `validation` above 0, or leave early_stopping out")
    drawn = sources or {}
    teacher = make_teacher(stage.teacher, models, student, store, partner_of(stage.transfer, task)) if isinstance(stage, DistillStage) else None
    transfer: Transfer = make_drawing("transfer", stage.transfer, task, drawn.get(stage.transfer.of or ""), writer=writer, folder=written)
    how: dict[str, Any] = {} if teacher is None or teacher.views is None else {"views": teacher.views}
    size = micro_batch(stage, world)
    loader = transfer.loader(task, batch_size=size, seed=seed, rank=rank, world=world, device=device, **how)
    example = next(iter(loader.batches(0)), None)
    if example is None:
        raise DataError(f"stage {name}: an epoch has no batch of {stage.batch_size}")
    if teacher is not None and teacher.views is not None and not {"id", *(("view",) if teacher.views > 1 else ())} <= set(example):
        raise MismatchError(
            f"stage {name}: its teacher knows the answers to {teacher.views} views of each example, and transfer.{stage.transfer.kind} does not say which "
            f"example ('id') and which view of it ('view') an input is (fields {', '.join(example)}): teach by {{kind: frozen}}, or on {{kind: real}}"
        )
    for module in (student, *((teacher,) if teacher is not None else ())):
        module.to(device)
    scheme = make_scheme(stage, student, teacher, task, task.facts(), example, drawn.get(stage.scheme.of or ""))
    return Assembled(scheme, loader, transfer)


def micro_batch(stage: TrainStage, world: int) -> int:
    """Return how many examples of a step fall to each micro-batch of each device.

    Raises:
        MismatchError: they do not divide.
    """
    shares = stage.accumulate * world
    if stage.batch_size % shares:
        raise MismatchError(
            f"batch_size {stage.batch_size} does not divide into {stage.accumulate} micro-batches on {world} devices: "
            f"take a multiple of {shares}, such as {max(1, round(stage.batch_size / shares)) * shares}"
        )
    return stage.batch_size // shares
