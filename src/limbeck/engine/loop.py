"""The loop: it alone steps, divides, clips, stops, saves and resumes; every scheme runs through it."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.errors import Interrupted, MismatchError, TrainingError
from ..core.events import EpochDone, Listener, Note, Progress
from ..core.files import atomic_folder
from ..core.scheme import Losses, Scheme
from ..core.task import Batch, Loader, Task
from . import checkpoint
from .checkpoint import Position
from .evaluate import evaluate
from .plan import Training, rate
from .runtime import Runtime, Setup

__all__ = ["Fit", "Work", "fit", "optimizers", "steps_per_epoch"]

LOOK_EVERY = 10
"""Steps between two looks at the losses: the only moments at which the host waits for the device."""


@dataclass(frozen=True)
class Work:
    """Where a training run keeps what it needs to go on after a kill; nothing is written where there is none."""

    folder: Path
    logs: Path
    tensorboard: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def best(self, player: str) -> Path:
        return self.folder / "best" / player


@dataclass(frozen=True)
class Fit:
    """How training went: the log of every epoch, the best epoch and its metric, and each player's best and last weights."""

    history: list[dict[str, Any]]
    steps: int
    best_epoch: int
    best: dict[str, dict[str, Tensor]]


def optimizers(scheme: Scheme, plan: Training) -> dict[str, torch.optim.Optimizer]:
    """Make one optimizer per player."""
    made: dict[str, torch.optim.Optimizer] = {}
    for player, parameters in scheme.players().items():
        if not parameters:
            raise MismatchError(f"the player {player!r} has no parameter that requires a gradient: there is nothing to train")
        made[player] = plan.optimizer.build(parameters)
    return made


def steps_per_epoch(loader: Loader, plan: Training) -> int:
    """Return the optimizer steps of an epoch.

    Raises:
        MismatchError: fewer batches than one step's micro-batches.
    """
    steps = len(loader) // plan.accumulate
    if steps == 0:
        raise MismatchError(
            f"an epoch has {len(loader)} batches, fewer than the {plan.accumulate} that one step accumulates: take a smaller batch_size or accumulate"
        )
    return steps


def fit(
    scheme: Scheme, task: Task, loader: Loader, plan: Training, runtime: Runtime, *, work: Work | None = None, listener: Listener, stage: str = "train"
) -> Fit:
    """Train every player of a scheme, from the start or from where a killed run had come to.

    Raises:
        TrainingError: a loss or a gradient that is not finite, with the step and the part.
        Interrupted: Ctrl-C; the state is saved first.
    """
    setup = runtime.setup(scheme, optimizers(scheme, plan))
    steps, position = steps_per_epoch(loader, plan), Position()
    if work is not None and (path := checkpoint.latest(work.checkpoints)) is not None:
        position = checkpoint.restore(path, setup, runtime)
    if work is not None:
        runtime.open_logs(work.logs, position.step, tensorboard=work.tensorboard)
    if runtime.world > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in scheme.modules()):
        listener(Note(f"{runtime.world} processes: batch norm uses each one's own statistics", stage))
    best: dict[str, dict[str, Tensor]] = {}
    with _asked_to_stop() as stop:
        while position.epoch < plan.epochs and not (plan.early_stopping and position.stale >= plan.early_stopping):
            _epoch(setup, loader, plan, runtime, position, steps, work, listener, stage, stop)
            improved = _evaluate(scheme, task, runtime, position, steps, plan)
            if improved:
                best = {player: _weights(model) for player, model in scheme.shipped().items()}
            if work is not None:
                if improved and runtime.is_main:
                    for player, weights in best.items():
                        with atomic_folder(work.best(player)) as scratch:
                            save_file(weights, scratch / "model.safetensors")
                checkpoint.save(work.checkpoints, position, setup, runtime, plan.keep)
            row = position.history[-1]
            runtime.log({name: value for name, value in row.items() if name not in ("epoch", "parts")} | row["parts"], position.step)
            listener(EpochDone(stage, position.epoch, plan.epochs, {name: value for name, value in row.items() if name not in ("epoch", "parts")}))
    runtime.close_logs()
    if not best and work is not None and position.best_epoch:
        best = {player: load_file(work.best(player) / "model.safetensors") for player in scheme.shipped()}
    return Fit(position.history, position.step, position.best_epoch, best)


def _epoch(
    setup: Setup, loader: Loader, plan: Training, runtime: Runtime, position: Position, steps: int, work: Work | None, listener: Listener, stage: str,
    stop: threading.Event,
) -> None:  # fmt: skip
    scheme, total = setup.scheme, plan.epochs * steps
    scheme.train()
    seen: list[tuple[int, dict[str, Tensor], Tensor]] = []
    batches = loader.batches(position.epoch, skip=position.micro)
    for _ in range(position.micro // plan.accumulate, steps):
        micro = list(islice(batches, plan.accumulate))
        done = position.step / steps
        scheme.at(done, plan.epochs)
        for phase in scheme.phases:
            for group in setup.optimizers[phase].param_groups:
                group["lr"] = group.setdefault("height", group["lr"]) * rate(plan.schedule, done, plan.epochs)
            parts, count = _step(setup, micro, phase, plan, runtime)
            seen.append((position.step + 1, parts, count))
        scheme.after_step()
        position.step += 1
        position.micro += plan.accumulate
        if len(seen) >= LOOK_EVERY * len(scheme.phases) or position.micro >= steps * plan.accumulate:
            _look(seen, position, runtime, stage)
            listener(Progress(stage, position.step, total, {"loss": _mean(position, "loss")} | _last(position)))
        if _everyone_stops(stop, runtime, looked=not seen):
            _look(seen, position, runtime, stage)
            if work is not None:
                checkpoint.save(work.checkpoints, position, setup, runtime, plan.keep)
            saved = "; the state is saved: run the same command again to go on" if work is not None else ""
            raise Interrupted(f"interrupted at step {position.step} of {total} of {stage}{saved}")
    position.epoch += 1
    position.micro = 0


def _everyone_stops(stop: threading.Event, runtime: Runtime, *, looked: bool) -> bool:
    """Say whether a person asked to stop; ranks agree on it, at the steps at which they look."""
    if runtime.world == 1:
        return stop.is_set()
    return looked and bool(runtime.sum(torch.tensor(float(stop.is_set()), device=runtime.device)).item())


def _step(setup: Setup, micro: list[Batch], phase: str, plan: Training, runtime: Runtime) -> tuple[dict[str, Tensor], Tensor]:
    """Take one optimizer step of one player: forward and backward over the micro-batches, one division by the count over all of them and all ranks."""
    optimizer = setup.optimizers[phase]
    alone = len(micro) == 1 and runtime.world == 1
    parts: dict[str, Tensor] = {}
    count: Tensor | None = None
    for index, batch in enumerate(micro):
        with runtime.no_sync(setup, enabled=index < len(micro) - 1):
            losses: Losses = setup.wrapped(batch, phase)
            runtime.backward(losses.loss if alone else losses.sums[phase] / plan.batch_size)
        count = losses.count if count is None else count + losses.count
        for name, value in {**losses.parts, "loss": losses.sums[phase].detach()}.items():
            parts[name] = parts[name] + value if name in parts else value
    assert count is not None
    if not alone:
        factor = plan.batch_size * runtime.world / runtime.sum(count.clone()).clamp(min=1)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad.mul_(factor)
    if plan.clip is not None:
        parts["gradient_norm"] = runtime.clip(setup, phase, plan.clip) * count
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return parts, count


def _look(seen: list[tuple[int, dict[str, Tensor], Tensor]], position: Position, runtime: Runtime, stage: str) -> None:
    """Bring the losses of the last steps to the host: refuse what is not finite, add the rest to the epoch's sums."""
    for names in dict.fromkeys(tuple(parts) for _, parts, _ in seen):
        rows = [(step, parts, count) for step, parts, count in seen if tuple(parts) == names]
        table = runtime.sum(torch.stack([torch.stack([count, *(part.float() for part in parts.values())]) for _, parts, count in rows])).tolist()
        for (step, _, _), (count, *values) in zip(rows, table, strict=True):
            for name, value in zip(names, values, strict=True):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"{name.replace('_', ' ')} of {stage} is {value} at step {step}: "
                        "look for a learning rate that is too high or data that are not finite; the last good checkpoint is kept"
                    )
                summed, counted = position.sums.get(name, (0.0, 0.0))
                position.sums[name] = (summed + value, counted + count)
    seen.clear()


def _evaluate(scheme: Scheme, task: Task, runtime: Runtime, position: Position, steps: int, plan: Training) -> bool:
    """Close an epoch: write its row, and say whether it is the best so far; without a validation split the last always is."""
    means = {name: _mean(position, name) for name in position.sums}
    position.sums = {}
    row: dict[str, Any] = {
        "epoch": position.epoch,
        "step": position.step,
        "lr": rate(plan.schedule, (position.step - 1) / steps, plan.epochs) * plan.optimizer.lr,
        "train_loss": means.pop("loss"),
    }
    if (norm := means.pop("gradient_norm", None)) is not None:
        row["gradient_norm"] = norm
    row["parts"] = means
    position.history.append(row)
    if "validation" not in task.splits():
        position.best_epoch = position.epoch
        return True
    for player, model in scheme.shipped().items():
        prefix = "validation_" if len(scheme.shipped()) == 1 else f"validation_{player}_"
        row |= {f"{prefix}{name}": value for name, value in evaluate(model, task, "validation", runtime).items()}
    names = [name for name in row if name.startswith("validation_") and name.endswith(f"_{task.metric}")]
    reached = sum(row[name] for name in names) / len(names)
    if position.best is None or (reached > position.best if task.higher_is_better else reached < position.best):
        position.best, position.best_epoch, position.stale = reached, position.epoch, 0
        return True
    position.stale += 1
    return False


def _mean(position: Position, name: str) -> float:
    summed, counted = position.sums[name]
    return summed / max(counted, 1.0)


def _last(position: Position) -> dict[str, float]:
    return {name: value for name, value in (position.history or [{}])[-1].items() if name.startswith("validation_")}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Let the first Ctrl-C finish the step at hand; the second one is Python's own."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
