"""The process that measures: `python -m limbeck.measure._worker request.json answer.json`, started fresh, without PyTorch.

A request says `task`: `time` loads every model and times them in interleaved rounds; `memory` loads and runs one model and reads this process's peak.
What cannot be measured ends in one line on stderr and exit code 1.
"""

import gc
import importlib
import json
import math
import random
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .energy import counter, why_not

LEAST = 200  # batch-1 runs of each model
_MOST = 2000  # runs in one slot, however fast the model
_UNTIMED = 2  # runs that open a slot, after another model emptied the caches
_TOLERANCE = 0.05  # between the medians of the last three windows of a warm-up
_TYPES = {"float": "float32", "double": "float64"}
_ORT = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # its classes are made in C++ and known to no type checker
_KINDS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "RuntimeException", "NoModel", "EPFail")
_REFUSALS = tuple(getattr(_ORT, kind) for kind in _KINDS)


class RefusedError(Exception):
    """A model that cannot be measured; the message is the line on stderr."""


def choose_cpus(core_of: Mapping[int, str], threads: int) -> list[int]:
    """Return which of the allowed CPUs (CPU -> its physical core) to pin to: the last ones, which take fewer interrupts, first one of each core.

    >>> choose_cpus({0: "a", 1: "a", 2: "b", 3: "b"}, 2)
    [1, 3]
    >>> choose_cpus({0: "a", 1: "a", 2: "b", 3: "b"}, 3)
    [1, 2, 3]
    """
    seen: dict[str, int] = {}
    place = {}
    for cpu in sorted(core_of, reverse=True):
        place[cpu] = seen[core_of[cpu]] = seen.get(core_of[cpu], -1) + 1
    return sorted(sorted(core_of, key=lambda cpu: (place[cpu], -cpu))[:threads])


def orders(models: int, rounds: int, seed: int) -> list[list[int]]:
    """Return the order of the models in every round, shuffled anew each time: a pure function of the seed.

    >>> orders(3, 2, 0) == orders(3, 2, 0), sorted(orders(3, 2, 0)[1])
    (True, [0, 1, 2])
    """
    generator = random.Random(seed)
    return [generator.sample(range(models), models) for _ in range(rounds)]


def is_steady(medians: Sequence[float]) -> bool:
    """Tell whether the medians of the last three windows lie within the tolerance of one another.

    >>> is_steady([9.0, 1.0, 1.01, 1.02]), is_steady([1.0, 1.2, 1.0]), is_steady([1.0, 1.0])
    (True, False, False)
    """
    last = medians[-3:]
    return len(last) == 3 and max(last) <= min(last) * (1 + _TOLERANCE)


def _pin(threads: int) -> list[int]:
    """Pin this process, and the threads it will start, to as many CPUs; none where the platform cannot."""
    if sys.platform != "linux":
        return []
    import os

    core_of = {}
    for cpu in os.sched_getaffinity(0):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core_of[cpu] = file.read_text() if file.is_file() else str(cpu)
    cpus = choose_cpus(core_of, threads)
    os.sched_setaffinity(0, cpus)
    return cpus


def _peak() -> tuple[int, str]:
    """This process's largest resident memory in bytes, and where it was read.

    On Linux VmHWM, for ru_maxrss there begins at what the launching process held at the moment of the launch.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "VmHWM"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024, "ru_maxrss"


def _inputs(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Inputs of an ordinary range: standard normal for real numbers, 0 to 255 for bytes, 0 and 1 for other integers (valid token ids, and booleans)."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return generator.standard_normal(shape).astype(kind)
    return generator.integers(0, 256 if dtype == "uint8" else 2, shape).astype(kind)


@dataclass
class Model:
    """A loaded model with its inputs, and what was timed of it; times in nanoseconds."""

    name: str
    session: onnxruntime.InferenceSession
    single: list[dict[str, np.ndarray]]
    batched: list[dict[str, np.ndarray]]

    def run(self, feeds: list[dict[str, np.ndarray]], times: int) -> np.ndarray:
        """Run `times` times over `feeds` in turn, after a few untimed runs; return each run's time `[times]`."""
        clock, run, taken = time.perf_counter_ns, self.session.run, np.empty(times)
        try:
            for i in range(_UNTIMED):
                run(None, feeds[i % len(feeds)])
            for i in range(times):
                feed = feeds[i % len(feeds)]
                start = clock()
                run(None, feed)
                taken[i] = clock() - start
        except _REFUSALS as error:
            raise RefusedError(f"{self.name}: onnxruntime cannot run it: {_line(error)}") from None
        return taken


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _checked(name: str, told: Any, in_shape: tuple[int, ...], dtype: str) -> None:
    """Compare a file's one input with what the request says of it."""
    kind = str(told.type).removeprefix("tensor(").removesuffix(")")
    if _TYPES.get(kind, kind) != dtype:
        raise RefusedError(f"{name}: its input {told.name!r} is {_TYPES.get(kind, kind)}, the data are {dtype}")
    dims = list(told.shape)
    if len(dims) != len(in_shape) + 1 or any(isinstance(dim, int) and dim != given for dim, given in zip(dims[1:], in_shape, strict=True)):
        raise RefusedError(f"{name}: its input {told.name!r} is {dims}, the data are [batch, {', '.join(map(str, in_shape))}]")
    if isinstance(dims[0], int):
        raise RefusedError(f"{name}: its batch dimension is fixed to {dims[0]}: export it with a dynamic batch")


def load(told: Mapping[str, Any], *, threads: int, batch: int, seed: int) -> Model:
    """Load one model on the CPU, sequential, `threads` threads, and make its inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or one model's idle threads spin into the next one's time
    try:
        session = onnxruntime.InferenceSession(told["path"], options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise RefusedError(f"{told['name']}: onnxruntime cannot load {told['path']}: {_line(error)}") from None
    names = [node.name for node in session.get_inputs()]
    if not names:
        raise RefusedError(f"{told['name']}: it has no input")
    in_shape = tuple(told["in_shape"])
    for node in session.get_inputs():
        _checked(told["name"], node, in_shape, told["dtype"])
    generator = np.random.default_rng(seed)

    def feed(rows: int) -> dict[str, np.ndarray]:
        beside = {name: np.ones((rows, *in_shape), told["dtype"]) for name in names[1:]}
        return {names[0]: _inputs(generator, (rows, *in_shape), told["dtype"]), **beside}

    return Model(told["name"], session, [feed(1) for _ in range(16)], [feed(batch) for _ in range(4)])


def warm_up(model: Model, seconds: float) -> tuple[float, float, bool]:
    """Run until three windows in a row agree, or for `seconds`; return the medians of a single run and of a batch in ns, and whether it became steady."""
    start, medians, batch_times = time.perf_counter(), [], []
    runs = 5
    while True:
        batch_times.append(float(np.median(model.run(model.batched, 1))))
        medians.append(float(np.median(model.run(model.single, runs))))
        runs = min(max(math.ceil(10e6 / medians[-1]), 5), 500)  # windows of about 10 ms
        if is_steady(medians):
            return medians[-1], float(np.median(batch_times)), True
        if len(medians) >= 3 and time.perf_counter() - start > seconds:
            return medians[-1], float(np.median(batch_times)), False


def _runs(slot_ns: float, one_ns: float, least: int) -> int:
    return min(max(math.ceil(slot_ns / one_ns), least), max(_MOST, least))


def measure_time(request: Mapping[str, Any]) -> dict[str, Any]:
    """Time every model of the request in interleaved rounds."""
    rounds, batch, seed = request["rounds"], request["batch"], request["seed"]
    cpus = _pin(request["threads"])
    models = [load(told, threads=request["threads"], batch=batch, seed=seed) for told in request["models"]]
    gc.collect()
    gc.disable()
    warm = [warm_up(model, max(0.3, request["seconds"] / len(models))) for model in models]
    slot = request["seconds"] * 1e9 / (rounds * len(models)) / 2
    singles = [_runs(slot, one, math.ceil(LEAST / rounds)) for one, _, _ in warm]
    batches = [_runs(slot, many, 1) for _, many, _ in warm]
    root = Path(request["powercap"])
    joules = counter("cpu", root=root)
    taken: list[list[np.ndarray]] = [[] for _ in models]
    throughput: list[list[float]] = [[] for _ in models]
    energy = [0.0 for _ in models]
    order = orders(len(models), rounds, seed)
    wall, own = time.perf_counter(), time.thread_time()
    for turn in order:
        for m in turn:
            before = joules.joules() if joules else 0.0
            taken[m].append(models[m].run(models[m].single, singles[m]))
            energy[m] += joules.joules() - before if joules else 0.0
            many = models[m].run(models[m].batched, batches[m])
            throughput[m].append(batches[m] * batch / (many.sum() / 1e9))
    share = (time.thread_time() - own) / (time.perf_counter() - wall)
    found = {}
    for m, model in enumerate(models):
        every = np.concatenate(taken[m]) / 1e6
        p50, p90, p99 = np.percentile(every, (50, 90, 99))
        found[model.name] = {
            "latency_ms_p50": float(p50),
            "latency_ms_p90": float(p90),
            "latency_ms_p99": float(p99),
            "latency_n": len(every),
            "round_medians_ms": [float(np.median(times)) / 1e6 for times in taken[m]],
            "throughput_per_s": float(np.median(throughput[m])),
            "throughput_n": rounds,
            "steady": warm[m][2],
            "energy_j_per_inference": energy[m] / (len(every) + _UNTIMED * rounds) if joules else None,
        }
    return {
        "models": found,
        "orders": order,
        "cpus": cpus,
        "cpu_share": share,
        "energy": {"source": joules.source if joules else None, "reason": why_not("cpu", root=root)},
    }


def measure_memory(request: Mapping[str, Any]) -> dict[str, Any]:
    """Read this process's peak memory before and after loading one model and running it at batch 1."""
    _pin(request["threads"])
    baseline, source = _peak()
    model = load(request["models"][0], threads=request["threads"], batch=1, seed=request["seed"])
    model.run(model.single, 10)
    return {"baseline_memory_bytes": baseline, "peak_memory_bytes": _peak()[0], "source": source}


def main(request_path: str, answer_path: str) -> int:
    request = json.loads(Path(request_path).read_text())
    try:
        answer = measure_time(request) if request["task"] == "time" else measure_memory(request)
    except RefusedError as refused:
        print(refused, file=sys.stderr)
        return 1
    Path(answer_path).write_text(json.dumps(answer, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
