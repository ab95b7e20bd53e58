"""The loop: it alone steps, divides, clips, stops, saves and resumes; every scheme runs through it."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.core.errors import DataError, Interrupted, MismatchError, RecipeError, TrainingError, did_you_mean
from limbeck.core.events import EpochDone, Listener, Note, Progress
from limbeck.core.files import atomic_folder
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Batch, Loader, Task

from . import checkpoint
from .checkpoint import Position
from .evaluate import evaluate
from .plan import Training, named_optimizer, rate
from .runtime import Runtime, Setup

__all__ = ["Fit", "Work", "fit", "optimizers", "steps_per_epoch"]

LOOK_EVERY = 10
"""Steps between two looks at the losses: the only moments at which the host waits for the device."""


_NORM = "gradient_norm"
_MAIN = "student"
"""The player whose loss and gradient norm are the run's; all players' are where there is none of this name."""
SAVE_EVERY = 5.0
"""Seconds between two checkpoints at the least, but for the first: short epochs share one. When it falls changes nothing about what a resumed run computes."""


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
    """How training went, over every attempt: the log of every epoch, the steps and seconds it took, the best epoch, and each player's weights then."""

    history: list[dict[str, Any]]
    steps: int
    seconds: float
    best_epoch: int
    best: dict[str, dict[str, Tensor]]


def optimizers(scheme: Scheme, plan: Training) -> dict[str, torch.optim.Optimizer]:
    """Make one optimizer per player, in torch's fused kernels; but for 16-mixed, whose gradients must be unscaled before they are clipped.

    Raises:
        RecipeError: an optimizer for a player that there is not.
        MismatchError: a player with nothing to train.
    """
    made: dict[str, torch.optim.Optimizer] = {}
    players = scheme.players()
    usual = {player: named_optimizer(told) for player, told in scheme.optimizers().items()}
    for name in plan.optimizers:
        if name not in players:
            raise RecipeError(f"optimizers names {name!r}, and nobody of that name learns{did_you_mean(name, players)}")
    for player, parameters in players.items():
        if not parameters:
            raise MismatchError(f"the player {player!r} has no parameter that requires a gradient: there is nothing to train")
        chosen = plan.optimizers.get(player, usual.get(player, plan.optimizer))
        made[player] = chosen.build(parameters, fused=plan.precision != "16-mixed")
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
    steps = steps_per_epoch(loader, plan)
    run = _Run(runtime.setup(scheme, optimizers(scheme, plan)), task, loader, plan, runtime, work, listener, stage, steps)
    if work is not None:
        if (path := checkpoint.latest(work.checkpoints)) is not None:
            run.position = checkpoint.restore(path, run.setup, runtime)
        runtime.open_logs(work.logs, run.position.step, tensorboard=work.tensorboard)
    if runtime.world > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in scheme.modules()):
        listener(Note(f"{runtime.world} processes: batch norm uses each one's own statistics", stage))
    with _asked_to_stop() as run.stop:
        while not _finished(run):
            _epoch(run)
            if _evaluate(run):
                run.best = {player: _weights(model) for player, model in scheme.shipped().items()}
                run.best_saved = False
            if _finished(run) or not run.saved or time.monotonic() - run.began >= SAVE_EVERY:
                run.save()
            row = run.position.history[-1]
            figures = {name: value for name, value in row.items() if name not in ("epoch", "parts")}
            runtime.log(figures | row["parts"], run.position.step)
            listener(EpochDone(stage, run.position.epoch, plan.epochs, figures))
        if run.stop.is_set():
            raise Interrupted(f"interrupted when {stage} was trained{'; the state is saved: run the same command again to go on' if work else ''}")
    runtime.close_logs()
    if not run.best and work is not None:
        run.best = {player: load_file(work.best(player) / "model.safetensors") for player in scheme.shipped()}
    return Fit(run.position.history, run.position.step, run.position.seconds, run.position.best_epoch, run.best)


@dataclass
class _Run:
    """What the parts of the loop share."""

    setup: Setup
    task: Task
    loader: Loader
    plan: Training
    runtime: Runtime
    work: Work | None
    listener: Listener
    stage: str
    steps: int
    position: Position = field(default_factory=Position)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    best_saved: bool = True
    saved: bool = False

    def save(self) -> None:
        """Write the best weights, then the state that knows of them: killed between the two, the epoch is run again and writes the same."""
        now = time.monotonic()
        self.position.seconds, self.began, self.saved = self.position.seconds + now - self.began, now, True
        if self.work is not None and self.runtime.is_main and not self.best_saved:
            for player, weights in self.best.items():
                with atomic_folder(self.work.best(player)) as scratch:
                    save_file(weights, scratch / "model.safetensors")
            self.best_saved = True
        if self.work is not None:
            checkpoint.save(self.work.checkpoints, self.position, self.setup, self.runtime, self.plan.keep)

    def mean(self, name: str) -> float:
        """The mean of a loss over the epoch so far."""
        summed, counted = self.position.sums[name]
        return summed / max(counted, 1.0)


def _finished(run: _Run) -> bool:
    return run.position.epoch >= run.plan.epochs or bool(run.plan.early_stopping and run.position.stale >= run.plan.early_stopping)


def _epoch(run: _Run) -> None:
    """Run the rest of an epoch."""
    position, plan, scheme, total = run.position, run.plan, run.setup.scheme, run.plan.epochs * run.steps
    seen: list[_Seen] = []
    scheme.train()
    batches = run.loader.batches(position.epoch, skip=position.micro)
    for _ in range(position.micro // plan.accumulate, run.steps):
        micro = list(islice(batches, plan.accumulate))
        if len(micro) < plan.accumulate:
            raise DataError(f"the training loader said {len(run.loader)} batches and gave fewer in epoch {position.epoch + 1}: give it a true __len__")
        epoch = position.step / run.steps
        scheme.at(epoch, plan.epochs)
        for phase in scheme.phases:
            for group in run.setup.optimizers[phase].param_groups:
                group["lr"] = group.setdefault("height", group["lr"]) * rate(plan.schedule, epoch, plan.epochs)
            seen.append(_Seen(position.step + 1, *_step(run, micro, phase)))
        scheme.after_step()
        for line in scheme.news():
            run.listener(Note(line, run.stage))
        position.step += 1
        position.micro += plan.accumulate
        if len(seen) >= LOOK_EVERY * len(scheme.phases) or position.micro >= run.steps * plan.accumulate:
            _look(run, seen)
            shown = {name: value for name, value in (position.history or [{}])[-1].items() if name.startswith("validation_")}
            run.listener(Progress(run.stage, position.step, total, {"loss": run.mean("loss"), **shown}))
        if _everyone_stops(run, looked=not seen):
            _look(run, seen)
            _refuse_broken(run)
            run.save()
            saved = "; the state is saved: run the same command again to go on" if run.work is not None else ""
            raise Interrupted(f"interrupted at step {position.step} of {total} of {run.stage}{saved}")
    _refuse_broken(run)
    position.epoch += 1
    position.micro = 0


class _Seen(NamedTuple):
    """What a step cost: each part's sum over the step's valid predictions, and how many those were."""

    step: int
    parts: dict[str, Tensor]
    valid: Tensor


def _step(run: _Run, micro: list[Batch], phase: str) -> tuple[dict[str, Tensor], Tensor]:
    """Take one optimizer step of one player: forward and backward over the micro-batches, one division by the count over all of them and all ranks.

    What a player beside the student costs is told by its own parts, or by its name where it has none.
    """
    runtime, optimizer = run.runtime, run.setup.optimizers[phase]
    main = phase == _MAIN or _MAIN not in run.setup.scheme.phases
    alone = len(micro) == 1 and runtime.world == 1
    parts: dict[str, Tensor] = {}
    count: Tensor | None = None
    for index, batch in enumerate(micro):
        with runtime.no_sync(run.setup, enabled=index < len(micro) - 1):
            losses: Losses = run.setup.wrapped(batch, phase)
            # One division by the true count for a single batch; else a constant now, and the true count over all micro-batches and ranks below.
            runtime.backward(losses.sums[phase] / (losses.count.clamp(min=1) if alone else run.plan.batch_size))
        count = losses.count if count is None else count + losses.count
        whole = losses.sums[phase].detach()
        told = {**losses.parts, "loss": whole} if main else losses.parts or {f"{phase}_loss": whole}
        for name, value in told.items():
            parts[name] = parts[name] + value if name in parts else value
    assert count is not None
    if not alone:
        factor = run.plan.batch_size * runtime.world / runtime.sum(count.clone()).clamp(min=1)
        for parameter in (one for group in optimizer.param_groups for one in group["params"] if one.grad is not None):
            parameter.grad.mul_(factor)
    if run.plan.clip is not None:
        parts[_NORM if main else f"{_NORM}_{phase}"] = runtime.clip(run.setup, phase, run.plan.clip) * count
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return parts, count


def _look(run: _Run, seen: list[_Seen]) -> None:
    """Bring the losses of the last steps to the host: refuse what is not finite, add the rest to the epoch's sums."""
    for names in dict.fromkeys(tuple(one.parts) for one in seen):
        rows = [one for one in seen if tuple(one.parts) == names]
        table = run.runtime.sum(torch.stack([torch.stack([one.valid, *(part.float() for part in one.parts.values())]) for one in rows])).tolist()
        for one, (count, *values) in zip(rows, table, strict=True):
            for name, value in zip(names, values, strict=True):
                if not math.isfinite(value):
                    if name.startswith(_NORM) and run.plan.precision == "16-mixed":
                        continue  # a step that the gradient scaler skips
                    raise _not_finite(run, name.replace("_", " "), value, one.step)
                summed, counted = run.position.sums.get(name, (0.0, 0.0))
                run.position.sums[name] = (summed + value, counted + count)
    seen.clear()


def _refuse_broken(run: _Run) -> None:
    """Refuse weights that are not finite before they are evaluated or saved: what the last step broke shows in no loss yet."""
    named = [(name, value) for name, value in run.setup.scheme.named_parameters() if value.requires_grad]
    broken = ~torch.stack([value.detach().isfinite().all() for _, value in named])
    if broken.any():
        raise _not_finite(run, named[int(broken.nonzero()[0])][0], "not finite", run.position.step)


def _not_finite(run: _Run, what: str, value: object, step: int) -> TrainingError:
    kept = "; the last good checkpoint is kept" if run.work else ""
    return TrainingError(f"{what} of {run.stage} is {value} at step {step}: look for a learning rate that is too high or data that are not finite{kept}")


def _everyone_stops(run: _Run, *, looked: bool) -> bool:
    """Say whether a person asked to stop; ranks agree on it, at the steps at which they look."""
    if run.runtime.world == 1:
        return run.stop.is_set()
    return looked and bool(run.runtime.sum(torch.tensor(float(run.stop.is_set()), device=run.runtime.device)).item())


def _evaluate(run: _Run) -> bool:
    """Close an epoch: write its row, and say whether it is the best so far by the task's metric, by the lower loss among equals.

    Without a validation split the last epoch always is.
    """
    position, plan, task = run.position, run.plan, run.task
    means = {name: run.mean(name) for name in position.sums}
    position.sums = {}
    row: dict[str, Any] = {
        "epoch": position.epoch,
        "step": position.step,
        "lr": rate(plan.schedule, (position.step - 1) / run.steps, plan.epochs) * plan.optimizers.get(_MAIN, plan.optimizer).lr,
        "train_loss": means.pop("loss"),
    }
    if (norm := means.pop(_NORM, None)) is not None:
        row[_NORM] = norm
    row["parts"] = means
    position.history.append(row)
    if "validation" not in task.splits():
        position.best_epoch = position.epoch
        return True
    found = {player: evaluate(model, task, "validation", run.runtime) for player, model in run.setup.scheme.shipped().items()}
    for player, scores in found.items():
        prefix = "validation_" if len(found) == 1 else f"validation_{player}_"
        row |= {f"{prefix}{name}": value for name, value in scores.items()}
    reached, loss = _mean_of(found, task.metric), _mean_of(found, "loss")
    assert reached is not None, f"a task's scores hold its metric {task.metric!r}"
    gain = 0.0 if position.best is None else (reached - position.best) * (1 if task.higher_is_better else -1)
    tied = gain == 0 and loss is not None and position.best_loss is not None and loss < position.best_loss
    if position.best is None or gain > 0 or tied:
        position.best, position.best_loss, position.best_epoch = reached, loss, position.epoch
        position.stale = position.stale + 1 if gain == 0 and len(position.history) > 1 else 0
        return True
    position.stale += 1
    return False


def _mean_of(found: dict[str, dict[str, float]], score: str) -> float | None:
    """The mean over players of a score, where the task has it."""
    values = [scores[score] for scores in found.values() if score in scores]
    return sum(values) / len(values) if values else None


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
