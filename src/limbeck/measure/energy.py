"""Joules, where a counter can be read; never an estimate."""

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

__all__ = ["Counter", "counter", "why_not"]

ROOT = Path("/sys/class/powercap")
Device = Literal["cpu", "gpu"]


class Counter(ABC):
    """An energy counter of the hardware."""

    source: Literal["rapl", "nvml"]

    @abstractmethod
    def joules(self) -> float:
        """The joules spent since this counter was made, by everything on the device."""


class _Rapl(Counter):
    """The running average power limit counters of every CPU package (without memory), wraparound undone: read it at least once per wrap (minutes)."""

    source: Literal["rapl", "nvml"] = "rapl"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._range = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = self._read()
        self._spent = 0

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def joules(self) -> float:
        now = self._read()
        for new, old, wrap in zip(now, self._last, self._range, strict=True):
            self._spent += new - old if new >= old else new + wrap - old
        self._last = now
        return self._spent / 1e6


class _Nvml(Counter):
    """NVML's total energy of one GPU, Volta or newer."""

    source: Literal["rapl", "nvml"] = "nvml"

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml, self._handle = pynvml, handle
        self._start = self._read()

    def _read(self) -> int:
        return self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)  # millijoules

    def joules(self) -> float:
        return (self._read() - self._start) / 1e3


def _rapl(root: Path) -> tuple[Counter | None, str]:
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if (zone / "name").is_file() and (zone / "name").read_text().startswith("package")]
    if not zones:
        return None, f"no energy counter: {root} has no RAPL package zone (a virtual machine, another kind of CPU, or a kernel without powercap)"
    try:
        return _Rapl(zones), ""
    except PermissionError as error:
        return None, f"{error.filename} is there but closed to this user: sudo chmod a+r {root}/intel-rapl:*/energy_uj opens it until the next boot"
    except (OSError, ValueError) as error:
        return None, f"the RAPL counter under {root} cannot be read: {error}"


def _nvml(index: int) -> tuple[Counter | None, str]:
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None, "no energy of the GPU: NVML's Python binding is not installed (pip install nvidia-ml-py)"
    try:
        pynvml.nvmlInit()
        return _Nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)), ""
    except pynvml.NVMLError as error:
        return None, f"no energy of the GPU: NVML says {error}"


def _found(device: Device, index: int, root: Path) -> tuple[Counter | None, str]:
    return _rapl(root) if device == "cpu" else _nvml(index)


def counter(device: Device = "cpu", *, index: int = 0, root: Path = ROOT) -> Counter | None:
    """Return a counter that starts at zero now, or None where none can be read; `why_not` then says why.

    Args:
        device: `cpu` reads RAPL (all packages of the machine), `gpu` reads NVML.
        index: of the GPU, as NVML numbers them.
        root: of the powercap tree.
    """
    return _found(device, index, root)[0]


def why_not(device: Device = "cpu", *, index: int = 0, root: Path = ROOT) -> str:
    """Return why no counter can be read, and an empty string where one can."""
    return _found(device, index, root)[1]
