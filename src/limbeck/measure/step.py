"""What one training step takes: its time, and the most memory that it holds at once."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Step", "allocations", "step"]


@dataclass(frozen=True)
class Step:
    """`seconds`: the quicker of two passes after one that warms up; `peak_bytes`: the most that torch held at once beyond what it held before."""

    seconds: float
    peak_bytes: int


def step(run: Callable[[], object], forget: Callable[[], object], device: "torch.device") -> Step:
    """Run a step four times, what it left (gradients) forgotten after each: to warm up, twice by the clock, once with every allocation counted."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - began
        forget()
        return taken

    timed()
    seconds = min(timed(), timed())
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        timed()
        return Step(seconds, torch.cuda.max_memory_allocated(device) - before)
    live = top = 0
    for change in allocations(run):
        live += change
        top = max(top, live)
    forget()
    return Step(seconds, top)


def allocations(run: Callable[[], object]) -> list[int]:
    """Run once on the CPU and return every change of what torch's allocator holds, in bytes, in order."""
    import torch

    watched = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _hushed():
        watched.start()
    try:
        run()
    finally:
        with _hushed():
            watched.stop()
    results: Any = watched.profiler  # the events' sizes have no public name
    return [size for _, size in sorted((event.start_ns(), event.nbytes()) for event in results.kineto_results.events() if event.name() == "[memory]")]


@contextmanager
def _hushed() -> Iterator[None]:
    """Leave out what the profiler's own library says on the error stream of its starts and stops, whatever its log level; no step runs meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
