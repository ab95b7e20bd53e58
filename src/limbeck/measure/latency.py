"""How fast exported files run, and how much memory they take: in a fresh process, pinned, warmed up, the models interleaved."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.core.errors import ArtifactError, LimbeckError, RecipeError

from . import energy
from .machine import busy, machine
from .size import file_bytes
from .statistics import bootstrap_ratio

__all__ = ["ModelFile", "measure_files"]

_ENOUGH = 0.95  # of its CPU that the measured thread must have had


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file: `in_shape` of its input without the batch, `dtype` by numpy's name; what it takes beside (which tokens count) has the same, all ones."""

    path: Path
    in_shape: tuple[int, ...]
    dtype: str = "float32"


def _environment(threads: int) -> dict[str, str]:
    """The child's environment: this very limbeck, and no more threads than told in whatever library it loads."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, "PYTHONPATH": path, **{pool: str(threads) for pool in pools}}


def _ask(request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Hand a request to a fresh process and return its answer."""
    names = ", ".join(model["name"] for model in request["models"])
    with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-P", "-m", f"{__package__}._worker", str(asked), str(answered)]
        try:
            done = subprocess.run(command, env=_environment(request["threads"]), capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LimbeckError(f"measuring {names} took longer than {timeout:g} s: allow more, or measure fewer models at a time") from None
        said = done.stderr.strip().splitlines()
        if done.returncode == 1 and said:
            raise ArtifactError(f"cannot measure {said[-1]}")
        if done.returncode or not answered.is_file():
            why = f"killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise ArtifactError(f"cannot measure {names}: the measuring process ended early ({why}){': ' + said[-1] if said else ''}")
        return json.loads(answered.read_text())


def _checked(files: Mapping[str, ModelFile], threads: int, rounds: int, seconds: float, batch: int) -> None:
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if not files:
        raise RecipeError("there is no model to measure: name at least one exported file")
    if not 1 <= threads <= allowed:
        raise RecipeError(f"threads {threads} must be 1 to {allowed}, the CPUs that this process may use")
    if rounds < 2 or batch < 1 or not seconds > 0:
        raise RecipeError(f"rounds {rounds} must be at least 2, batch {batch} at least 1 and seconds {seconds} above zero")
    for name, file in files.items():
        if not file.path.is_file():
            raise ArtifactError(f"cannot measure {name}: {file.path} is missing; export it again")


def measure_files(
    files: Mapping[str, ModelFile],
    *,
    threads: int = 1,
    rounds: int = 25,
    seconds: float = 2.5,
    batch: int = 32,
    seed: int = 0,
    timeout: float = 1800.0,
    powercap: Path = energy.ROOT,
) -> dict[str, Any]:
    """Measure exported files side by side and return what `measurement.json` holds.

    One fresh process without PyTorch loads all of them in onnxruntime, pins itself to `threads` CPUs (Linux), warms each up until the medians of three
    windows agree within 5%, then times them in rounds, their order shuffled in each. A round runs each model at batch 1 (at least 200 runs in all) and
    at `batch`, on random inputs, the call from Python included. Percentiles are over all runs at batch 1; throughput is the median over rounds;
    a ratio is (median of the first model) / (median of another), how many times faster the other is, with the bootstrap interval over paired rounds.
    Then one more fresh process per model reads the peak of resident memory at batch 1, before loading (`baseline_memory_bytes`) and after.
    Energy is the CPU packages' whole consumption while a model runs, where a counter can be read.

    Args:
        files: name -> file; the first is the one that the others are compared with, the teacher as a rule.
        threads: of onnxruntime, within one operation.
        rounds: of the interleaving; the n of every ratio.
        seconds: that the rounds should take in all; slow models take longer, for they run 200 times at least.
        batch: for the throughput.
        seed: of the inputs, the order and the bootstrap.
        timeout: in seconds, for each process.
        powercap: the tree where RAPL counters lie.

    Raises:
        RecipeError: no file, or a number that cannot be meant.
        ArtifactError: a file that is missing, damaged, or does not take these inputs.
        LimbeckError: the timeout.
    """
    _checked(files, threads, rounds, seconds, batch)
    told = [{"name": name, "path": str(file.path.resolve()), "in_shape": list(file.in_shape), "dtype": file.dtype} for name, file in files.items()]
    sizes = {name: file_bytes(file.path) for name, file in files.items()}
    common = {"threads": threads, "rounds": rounds, "seconds": seconds, "batch": batch, "seed": seed, "powercap": str(powercap)}
    noise = busy()
    answer = _ask({"task": "time", "models": told, **common}, timeout)
    spent = _energy(answer)
    models: dict[str, Any] = {}
    sources: set[str] = set()
    for model in told:
        name = model["name"]
        timed = dict(answer["models"][name])
        timed.pop("round_medians_ms")
        joules = timed.pop("energy_j_per_inference")
        memory = _ask({"task": "memory", "models": [model], **common}, timeout)
        sources.add(memory["source"])
        models[name] = {
            "file_bytes": sizes[name],
            **timed,
            "throughput_batch": batch,
            "peak_memory_bytes": memory["peak_memory_bytes"],
            "baseline_memory_bytes": memory["baseline_memory_bytes"],
            **({"energy_j_per_inference": joules} if spent["source"] else {}),
        }
    notes, loud = _notes(answer, noise, seconds)
    if sys.platform == "linux" and sources != {"VmHWM"}:
        notes.append("this kernel tells no VmHWM: peak memory is ru_maxrss, which begins at what the launching process held")
    return {
        "machine": machine(),
        "threads": threads,
        "models": models,
        "ratios": _ratios(answer, list(files), seed),
        "energy": spent,
        "notes": notes,
        "busy": loud,
    }


def _ratios(answer: Mapping[str, Any], names: list[str], seed: int) -> list[dict[str, Any]]:
    medians = {name: answer["models"][name]["round_medians_ms"] for name in names}
    first, found = names[0], []
    for name in names[1:]:
        ratio = bootstrap_ratio(medians[first], medians[name], seed=seed)
        row = {"a": first, "b": name, "quantity": "latency_ms_p50", "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "n": ratio.n}
        found.append(row)
    return found


def _energy(answer: Mapping[str, Any]) -> dict[str, Any]:
    told = answer["energy"]
    if told["source"] and not all(model["energy_j_per_inference"] for model in answer["models"].values()):
        return {"source": None, "reason": f"the {told['source']} counter stood still while a model ran: too short a measurement, or a counter that is not fed"}
    return {"source": told["source"], "reason": told["reason"]}


def _notes(answer: Mapping[str, Any], noise: str | None, seconds: float) -> tuple[list[str], bool]:
    """What a reader must know, the loudest first, and whether the machine was busy."""
    notes = [noise] if noise else []
    share = answer["cpu_share"]
    starved = share < _ENOUGH
    if starved:
        notes.append(f"the machine was busy: the measured thread had its CPU for only {share:.0%} of the time; latencies are too high")
    unsteady = [name for name, model in answer["models"].items() if not model["steady"]]
    if unsteady:
        limit = max(0.3, seconds / len(answer["models"]))
        notes.append(f"{', '.join(unsteady)} did not become steady within {limit:.1f} s of warm-up: read the figures with their intervals, or measure longer")
    if answer["energy"]["source"]:
        notes.append("energy is what the counter gives: all that ran on the device meanwhile, its idle consumption included")
    cpus = answer["cpus"]
    notes.append(f"pinned to CPU {', '.join(map(str, cpus))}" if cpus else "not pinned: this platform cannot pin a process to CPUs")
    return notes, bool(noise) or starved
