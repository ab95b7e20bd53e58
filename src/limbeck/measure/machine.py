"""On which machine figures were taken, and whether it was quiet."""

import importlib.metadata
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

__all__ = ["busy", "machine"]

_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_LIBRARIES = ("limbeck", "torch", "onnxruntime", "numpy")
_OTHERS = 0.1  # of all CPU time in the sample
_LOAD = 0.5  # runnable threads per CPU over the last minute


def _cpu(cpuinfo: str) -> tuple[str, list[str]]:
    """The model's name and the flags that decide how fast inference can be, from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    has = set((fields.get("flags") or fields.get("features") or "").split())
    return fields.get("model name", ""), [flag for flag in _FLAGS if flag in has]


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(*, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return what a reader must know to compare figures: CPU, the flags that matter, cores, memory, versions, load average; JSON-able.

    `cores` are physical, `cpus` logical, `cpus_allowed` those this process may use; what cannot be read is None or empty.
    """
    model, flags = _cpu(cpuinfo.read_text(errors="replace")) if cpuinfo.is_file() else ("", [])
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "flags": flags,
        "cores": psutil.cpu_count(logical=False),
        "cpus": psutil.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{library: _version(library) for library in _LIBRARIES},
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
    }


def _own_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _busy_seconds(times: Mapping[str, float]) -> float:
    """CPU seconds in which somebody computed, a hypervisor's other guests (steal) included; guest time is part of user time already."""
    return sum(seconds for name, seconds in times.items() if name not in {"idle", "iowait", "guest", "guest_nice"})


def _own_load(cpu_seconds: float, lifetime: float) -> float:
    """What a process contributes to the one-minute load average if it computed evenly: its rate, weighed by how much of the minute it lived."""
    return cpu_seconds / lifetime * (1 - math.exp(-lifetime / 60)) if lifetime > 0 else 0.0


def _note(others: float, load: float, cpus: int) -> str | None:
    """The note for `others` (their share of all CPU time just now) and `load` (the load average without this process)."""
    if others > _OTHERS:
        return f"the machine was busy: others took {others:.0%} of its {cpus} CPUs just before measuring; latencies may be too high, measure again in quiet"
    if load / cpus > _LOAD:
        return f"the machine was busy: a load average of {load:.1f} on {cpus} CPUs in the last minute, limbeck not counted; latencies may be too high"
    return None


def busy(seconds: float = 0.3) -> str | None:
    """Return a loud note when others use this machine, None when it is quiet.

    Samples all CPU time for `seconds`, without what this process and its children used, and reads the load average of the last minute, without
    what this process will have contributed; above 10% of the CPUs or half a runnable thread per CPU the machine is called busy.
    """
    cpus = psutil.cpu_count() or 1
    start, before, own = time.monotonic(), psutil.cpu_times()._asdict(), _own_seconds()
    time.sleep(seconds)
    elapsed = time.monotonic() - start
    spent = _busy_seconds(psutil.cpu_times()._asdict()) - _busy_seconds(before) - (_own_seconds() - own)
    lived = time.time() - psutil.Process().create_time()
    load = max(psutil.getloadavg()[0] - _own_load(_own_seconds(), lived), 0.0)
    return _note(max(spent, 0.0) / (elapsed * cpus), load, cpus)
