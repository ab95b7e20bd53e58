"""Weights that processes leave for one another in a folder they share."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.files import atomic_write

__all__ = ["Left", "found", "leave", "place", "take", "writer"]


@dataclass(frozen=True)
class Left:
    """What a peer has left: the step it was at, whether it trains no more, the process that wrote, its weights."""

    step: int
    finished: bool
    writer: str
    weights: Mapping[str, Tensor]


def place(folder: Path, name: str) -> Path:
    """Return the file in which a peer leaves its weights."""
    return folder / f"{name}.safetensors"


def writer() -> str:
    """Name this process among all that may write."""
    return f"{platform.node()}:{os.getpid()}"


def leave(path: Path, model: nn.Module, step: int, *, finished: bool = False) -> None:
    """Write a model's weights whole or not at all: who reads at the same time finds the old ones or the new ones."""
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    atomic_write(path, save(weights, {"step": str(step), "finished": str(int(finished)), "writer": writer()}))


def found(path: Path) -> Left | str | None:
    """Return what was left at a path, nothing where there is none, or why it cannot be taken, in words."""
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    if not {"step", "finished", "writer"} <= told.keys() or not told["step"].isdecimal():
        return "was not left by a codistillation"
    if not all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point()):
        return "is not finite"
    return Left(int(told["step"]), told["finished"] == "1", told["writer"], weights)


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Say in what some weights are not those of a model, nothing where they fit."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            here, there = (f"{list(shapes[name])}" if name in shapes else "not there" for shapes in (ours, theirs))
            return f"{name} is {there} in the file and {here} in the model"
    return ""


@torch.no_grad()
def take(model: nn.Module, left: Left, whose: str) -> None:
    """Put what a peer has left into the copy of it.

    Raises:
        MismatchError: it is another model.
    """
    if wrong := misfit(model, left.weights):
        raise MismatchError(
            f"{whose} is another model than it is said to be ({wrong}): name its model, peers: {{name: {{kind: cnn, width: 8}}}}, or delete the file where an "
            "earlier training left it"
        )
    model.load_state_dict(left.weights)
