"""Training states on disk: whole or absent, checked before they are believed.

checkpoints/00000123/     after 123 optimizer steps
    state.safetensors     every tensor: players and objectives, optimizers, random generators
    state.json            position, history, the optimizers' other numbers
    manifest.json         the SHA-256 of both
"""

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.wrappers import _FabricOptimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.core.errors import ArtifactError
from limbeck.core.files import atomic_folder, read_json, sha256, write_json

from .runtime import Runtime, Setup

__all__ = ["Position", "latest", "restore", "save", "seed_everything"]

_FILES = ("state.safetensors", "state.json")


@dataclass
class Position:
    """Where training stands: whatever the loop must know to go on as if it had never stopped.

    `seconds`: of training so far, over every attempt; `micro`: micro-batches of the current epoch that are done;
    `sums`: each loss's running sum over the epoch, and the count it is over.
    """

    step: int = 0
    epoch: int = 0
    micro: int = 0
    best_epoch: int = 0
    best: float | None = None
    best_loss: float | None = None
    stale: int = 0
    seconds: float = 0.0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def seed_everything(seed: int) -> None:
    """Seed every random generator that a checkpoint keeps: torch's, Python's and numpy's global one."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def save(folder: Path, position: Position, setup: Setup, runtime: Runtime, keep: int) -> None:
    """Write the whole training state; the `keep` newest stay. Every rank comes back once it stands."""
    generators = runtime.gather(torch.get_rng_state().to(runtime.device)).cpu()
    devices = runtime.gather(torch.cuda.get_rng_state(runtime.device).to(runtime.device)).cpu() if runtime.device.type == "cuda" else None
    if runtime.is_main:
        _write(folder, position, setup, runtime, keep, {"generators": generators} | ({} if devices is None else {"device_generators": devices}))
    runtime.barrier()


def _write(folder: Path, position: Position, setup: Setup, runtime: Runtime, keep: int, generators: dict[str, Tensor]) -> None:
    tensors = generators | {f"scheme.{name}": value for name, value in setup.scheme.state_dict().items()}
    numbers: dict[str, Any] = {}
    for player, optimizer in setup.optimizers.items():
        state: dict[str, Any] = dict(optimizer.state_dict())
        numbers[player] = {"kind": _kind(optimizer), "groups": state["param_groups"], "state": {}}
        for index, slots in state["state"].items():
            tensors |= {f"optimizer.{player}.{index}.{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
            numbers[player]["state"][str(index)] = {key: value for key, value in slots.items() if not isinstance(value, Tensor)}
    version, inner, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    told = {
        "position": vars(position),
        "optimizers": numbers,
        "python": [version, list(inner), gauss],
        "numpy": [legacy[0], np.asarray(legacy[1]).tolist(), *legacy[2:]],
        "world": runtime.world,
        "precision": runtime.precision_state(),
    }
    path = folder / f"{position.step:08d}"
    with atomic_folder(path) as scratch:
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, scratch / "state.safetensors")
        (scratch / "state.json").write_text(json.dumps(told))
        write_json(scratch / "manifest.json", {name: sha256(scratch / name) for name in _FILES})
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)


def _kind(optimizer: _FabricOptimizer) -> str:
    return type(optimizer.optimizer).__name__


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint, or None.

    Raises:
        ArtifactError: its bytes do not match its manifest.
    """
    found = _all(folder)
    if not found:
        return None
    path = found[-1]
    told = read_json(path / "manifest.json")
    for name in _FILES:
        if not isinstance(told, dict) or not (path / name).is_file() or sha256(path / name) != told.get(name):
            raise ArtifactError(f"{path / name} does not match its manifest: the checkpoint is damaged; delete {path} and run again")
    return path


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value` in the memory layout of its parameter: torch's fused optimizers go through both by address, whatever their strides say."""
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value) if value.shape == parameter.shape else value


def restore(path: Path, setup: Setup, runtime: Runtime) -> Position:
    """Put the whole training state back, generators included, and return where it stood.

    Raises:
        ArtifactError: the checkpoint is of another scheme, or of another number of processes half-way through an epoch.
    """
    try:
        tensors = load_file(path / "state.safetensors")
    except SafetensorError as error:
        raise ArtifactError(f"{path / 'state.safetensors'} cannot be read ({error}): delete {path} and run again") from None
    told = read_json(path / "state.json")
    own = {name.removeprefix("scheme."): value for name, value in tensors.items() if name.startswith("scheme.")}
    expected = setup.scheme.state_dict()
    if own.keys() != expected.keys() or any(own[name].shape != expected[name].shape for name in own):
        raise ArtifactError(f"{path} is the checkpoint of another model or other objectives: delete {path.parent.parent} and run again")
    setup.scheme.load_state_dict(own)
    for player, optimizer in setup.optimizers.items():
        numbers = told["optimizers"][player]
        state: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in numbers["state"].items()}
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        start = f"optimizer.{player}."
        for name, value in tensors.items():
            if name.startswith(start):
                index, _, key = name.removeprefix(start).partition(".")
                state[int(index)][key] = _laid_out_as(parameters[int(index)], value)
        if numbers["kind"] != _kind(optimizer):
            raise ArtifactError(f"{path} is the checkpoint of another optimizer: delete {path.parent.parent} and run again")
        whole: dict[str, Any] = {"state": state, "param_groups": numbers["groups"]}
        optimizer.load_state_dict(whole)
    runtime.restore_precision(told["precision"])
    position = Position(**told["position"])
    if told["world"] != runtime.world and position.micro:
        raise ArtifactError(
            f"{path} was saved within an epoch by {told['world']} processes, and there are {runtime.world}: run it with devices: {told['world']}"
        )
    if told["world"] == runtime.world:
        torch.set_rng_state(tensors["generators"][runtime.rank].clone())  # torch reads a view from the start of its storage
        if "device_generators" in tensors:
            torch.cuda.set_rng_state(tensors["device_generators"][runtime.rank].clone(), runtime.device)
    version, inner, gauss = told["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = told["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    return position
