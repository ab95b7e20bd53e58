import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from limbeck.measure import energy
from limbeck.measure.energy import counter, why_not


def zone(root: Path, folder: str, name: str, joules: float, wrap: float = 1000.0) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{int(wrap * 1e6)}\n")
    spend(path, joules)
    return path


def spend(path: Path, joules: float) -> None:
    (path / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_rapl_sums_the_packages_and_nothing_inside_them(tmp_path):
    one, two = zone(tmp_path, "intel-rapl:0", "package-0", 10), zone(tmp_path, "intel-rapl:1", "package-1", 500)
    core, psys = zone(tmp_path, "intel-rapl:0:0", "core", 3), zone(tmp_path, "intel-rapl:2", "psys", 3)
    again = zone(tmp_path, "intel-rapl-mmio:0", "package-0", 10)
    found = counter(root=tmp_path)
    assert found is not None
    assert found.source == "rapl"
    assert found.joules() == 0.0
    for path, joules in ((one, 12.5), (two, 501), (core, 999), (psys, 999), (again, 12.5)):
        spend(path, joules)
    assert found.joules() == 3.5
    assert found.joules() == 3.5
    assert why_not(root=tmp_path) == ""


def test_rapl_undoes_the_wraparound_every_time(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 990, wrap=1000)
    found = counter(root=tmp_path)
    assert found is not None
    for joules, expected in ((998, 8), (5, 15), (900, 910), (1, 1011)):
        spend(path, joules)
        assert found.joules() == expected


def test_without_a_counter_there_are_no_joules_but_a_reason(tmp_path):
    assert counter(root=tmp_path / "none") is None
    assert "no RAPL package zone" in why_not(root=tmp_path / "none")
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    assert counter(root=tmp_path) is None


def test_a_closed_counter_says_how_to_open_it(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", "package-0", 1)

    def closed(_self):
        raise PermissionError(13, "Permission denied", str(tmp_path / "intel-rapl:0/energy_uj"))

    monkeypatch.setattr(energy._Rapl, "_read", closed)
    assert counter(root=tmp_path) is None
    assert "sudo chmod a+r" in why_not(root=tmp_path)


@pytest.mark.parametrize("text", ["", "not a number"])
def test_a_broken_counter_is_no_counter(tmp_path, text):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (path / "energy_uj").write_text(text)
    assert counter(root=tmp_path) is None
    assert "cannot be read" in why_not(root=tmp_path)


def nvml(monkeypatch, readings, error=None):
    class NVMLError(Exception):
        pass

    def energy_of(handle):
        if error:
            raise NVMLError(error)
        assert handle == "gpu 1"
        return next(readings)

    fake = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda i: f"gpu {i}", nvmlDeviceGetTotalEnergyConsumption=energy_of
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)


def test_nvml_counts_from_where_it_was_made(monkeypatch):
    nvml(monkeypatch, iter([5_000, 5_250, 9_000]))
    found = counter("gpu", index=1)
    assert found is not None
    assert found.source == "nvml"
    assert (found.joules(), found.joules()) == (0.25, 4.0)


def test_nvml_says_why_it_cannot(monkeypatch):
    nvml(monkeypatch, iter([]), error="Not Supported")
    assert counter("gpu", index=1) is None
    assert "Not Supported" in why_not("gpu", index=1)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in why_not("gpu")
