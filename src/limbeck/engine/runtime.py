"""Where and how a scheme runs: devices, ranks, precision, logs. One file over Lightning Fabric."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, multiprocessing
from torch.multiprocessing.spawn import ProcessException

from limbeck.core.errors import Interrupted, LimbeckError, MismatchError, MissingDependency
from limbeck.core.events import Listener
from limbeck.core.scheme import Scheme

__all__ = ["Accelerator", "Runtime", "Setup"]

Accelerator = Literal["auto", "cpu", "cuda", "mps"]
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Setup:
    """A scheme and its optimizers, wrapped once for a runtime."""

    scheme: Scheme
    wrapped: _FabricModule
    optimizers: dict[str, _FabricOptimizer]


class Runtime:
    """Devices, ranks, precision and logs; `launch` starts one process per device and hands each its own.

    Raises:
        MismatchError: an accelerator or a precision was asked for that is not there: none is taken in its place.
    """

    def __init__(self, *, accelerator: Accelerator = "cpu", devices: int = 1, precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true") -> None:
        found = {"cpu": devices, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        taken = next((kind for kind in ("cuda", "mps") if found[kind]), "cpu") if accelerator == "auto" else accelerator
        if found[taken] < devices:
            raise MismatchError(f"{devices} {taken} devices were asked for, and torch sees {found[taken]}: take accelerator: cpu, or fewer devices")
        if precision == "16-mixed" and taken == "cpu":
            raise MismatchError("precision 16-mixed needs a GPU, and this runs on the CPU: take precision: bf16-mixed, or 32-true")
        # a layer that no objective reads (the head, when only hints are matched) gets no gradient: DDP must look for such
        strategy = "auto" if devices == 1 else DDPStrategy(start_method="spawn", find_unused_parameters=True)
        self.fabric = Fabric(accelerator=taken, devices=devices, strategy=strategy, precision=precision)
        self._loggers: list[Logger] = []

    @property
    def _spawns(self) -> bool:
        return self.fabric.strategy.launcher is not None

    def launch(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run `work(runtime, *args)` in one process per device, in this one for a single device; return what rank 0 returned.

        What any rank raises of limbeck's own errors is raised here.
        """
        if not self._spawns:
            return work(self, *args)
        errors = multiprocessing.get_context("spawn").SimpleQueue()
        with _left_to_the_ranks() as asked:
            try:
                answer = self.fabric.launch(partial(_on_rank, self, work, errors, args))
            except ProcessException:
                if not errors.empty():
                    raise errors.get() from None  # the other ranks failed because this one was gone
                if asked.is_set():
                    raise Interrupted("interrupted before the first step") from None
                raise
        if not errors.empty():
            raise errors.get()
        return answer

    @contextmanager
    def relayed(self, listener: Listener) -> Iterator[Listener]:
        """Give a listener that can be handed to `launch`: whichever process it is called in, `listener` hears it in this one, in order."""
        if not self._spawns:
            yield listener
            return
        reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)

        def hear() -> None:
            with reader:
                try:
                    while True:
                        listener(reader.recv())
                except EOFError:  # every process that could speak is gone
                    return

        ear = threading.Thread(target=hear, daemon=True)
        ear.start()
        try:
            yield writer.send
        finally:
            writer.close()
            ear.join()

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        return self.fabric.world_size

    @property
    def is_main(self) -> bool:
        return self.fabric.is_global_zero

    def setup(self, scheme: Scheme, optimizers: Mapping[str, torch.optim.Optimizer]) -> Setup:
        """Move the scheme to the device and wrap it, whole and once."""
        wrapped = self.fabric.setup_module(scheme)
        ready: dict[str, _FabricOptimizer] = {}
        for name, optimizer in optimizers.items():
            one = self.fabric.setup_optimizers(optimizer)
            assert isinstance(one, _FabricOptimizer)
            ready[name] = one
        return Setup(scheme, wrapped, ready)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def no_sync(self, setup: Setup, *, enabled: bool) -> AbstractContextManager[Any]:
        """Leave gradients unsynchronised over ranks while the block lasts; nothing to do in a single process."""
        return self.fabric.no_backward_sync(setup.wrapped, enabled=enabled) if self.world > 1 else nullcontext()

    def clip(self, setup: Setup, player: str, norm: float) -> Tensor:
        """Scale a player's gradient down to `norm`; return what its norm was. A norm that is not finite is for the loop to notice."""
        found = self.fabric.clip_gradients(setup.wrapped, setup.optimizers[player], max_norm=norm, error_if_nonfinite=False)
        assert found is not None
        return found.detach()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks."""
        if self.world == 1:
            return tensor
        summed = self.fabric.all_reduce(tensor, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def gather(self, tensor: Tensor) -> Tensor:
        """Stack a tensor over ranks: `[world, ...]`."""
        if self.world == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        torch.distributed.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    def precision_state(self) -> dict[str, Any]:
        """The numbers that mixed precision keeps from step to step (the scale of 16-bit losses), JSON-able."""
        return self.fabric.strategy.precision.state_dict()

    def restore_precision(self, state: dict[str, Any]) -> None:
        """Put back what `precision_state` gave."""
        self.fabric.strategy.precision.load_state_dict(state)

    def barrier(self) -> None:
        self.fabric.barrier()

    def open_logs(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        """Log to `folder`, from `step` on: what an earlier, killed attempt logged from the same step gives way, what came before stays."""
        kinds: list[tuple[str, Callable[..., Logger]]] = [("csv", CSVLogger), ("tensorboard", TensorBoardLogger)]
        for kind, logger in kinds[: 2 if tensorboard else 1]:
            version = f"{kind}_{step:06d}"
            if self.is_main:
                shutil.rmtree(folder / version, ignore_errors=True)
            try:
                self._loggers.append(logger(root_dir=folder.parent, name=folder.name, version=version))
            except ModuleNotFoundError:
                raise MissingDependency("tensorboard", "tensorboard", "logging to TensorBoard") from None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics to every logger."""
        for logger in self._loggers:
            logger.log_metrics(dict(metrics), step)
            logger.save()

    def close_logs(self) -> None:
        """Flush and close every logger."""
        for logger in self._loggers:
            logger.finalize("success")
        self._loggers.clear()


def _on_rank(runtime: Runtime, work: Callable[..., Any], errors: Any, args: tuple[Any, ...], fabric: Fabric) -> Any:
    runtime.fabric = fabric
    try:
        return work(runtime, *args)
    except LimbeckError as error:
        errors.put(error)
    except KeyboardInterrupt:
        errors.put(Interrupted("interrupted outside of training: run the same command again to go on"))
    finally:
        torch.distributed.destroy_process_group()  # its threads would abort the process if they outlived it


@contextmanager
def _left_to_the_ranks() -> Iterator[threading.Event]:
    """Leave Ctrl-C to the processes that train: they save and come back; say whether it was pressed."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else DDP speaks up where it looked for unused layers and every layer was used
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, lambda _number, _frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
