"""A transfer set that an earlier stage's model writes: written once, before anything is trained and in one process."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from limbeck.core import VERSION
from limbeck.core.artifact import Artifact
from limbeck.core.events import Listener, Note
from limbeck.core.files import digest
from limbeck.core.task import Task
from limbeck.core.transfer import Transfer

from .modules import load_module
from .recipe import TrainStage
from .resolve import drawing, make_drawing

__all__ = ["authored", "place_of"]


def place_of(stage: TrainStage, task: Task, out: Path, *, seed: int, digests: Mapping[str, str]) -> Path:
    """Return the folder in `out`'s `knowledge/` that keeps what is written for a stage, named by all that it depends on."""
    told = {"transfer": drawing("transfer", stage.transfer, task, digests), "data": task.fingerprint(), "seed": seed, "limbeck": VERSION}
    return out / "knowledge" / f"written-{digest(told)[:12]}"


def authored(name: str, stage: TrainStage, source: Artifact, task: Task, folder: Path, *, seed: int, device: torch.device, listener: Listener) -> None:
    """Make sure that what the model of `source` writes for a stage stands whole in `folder`; what a killed run has left there is gone on with."""
    if not any(folder.glob("*.safetensors")):
        listener(Note(f"{source.name} writes the transfer set: {task.facts().examples} rows", name))
    began = time.monotonic()
    transfer: Transfer = make_drawing("transfer", stage.transfer, task, source, writer=load_module(source), folder=folder)
    transfer.loader(task, batch_size=1, seed=seed, device=device, whole=True)
    listener(Note(f"what {source.name} wrote stands in {folder.name} ({time.monotonic() - began:.1f} s)", name))
