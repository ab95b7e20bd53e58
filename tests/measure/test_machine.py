import json
import math
from collections import namedtuple

import psutil
import pytest

from limbeck.measure import machine as module
from limbeck.measure.machine import busy, machine

INTEL = """processor\t: 0
model name\t: Some Xeon @ 2.00GHz
flags\t\t: fpu sse avx avx2 fma avx512f avx512_vnni amx_int8 amx_tile
processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\n"


def test_machine_says_what_a_reader_must_know(tmp_path):
    (tmp_path / "cpuinfo").write_text(INTEL)
    found = machine(cpuinfo=tmp_path / "cpuinfo")
    assert found["cpu"] == "Some Xeon @ 2.00GHz"
    assert found["flags"] == ["avx", "avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"]
    assert found["onnxruntime"].count(".") == 2
    assert found["torch"].startswith("2.")
    assert found["cpus"] >= found["cpus_allowed"] >= 1
    assert found["memory_bytes"] > 2**28
    assert len(found["load_average"]) == 3
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_machine_reads_arm_and_goes_without_cpuinfo(tmp_path):
    (tmp_path / "cpuinfo").write_text(ARM)
    assert machine(cpuinfo=tmp_path / "cpuinfo")["flags"] == ["asimd", "asimddp", "i8mm"]
    bare = machine(cpuinfo=tmp_path / "none")
    assert bare["flags"] == []
    assert bare["cpu"]


def test_an_absent_library_is_none(monkeypatch):
    monkeypatch.setattr(module, "_LIBRARIES", ("no-such-library-here",))
    assert machine()["no-such-library-here"] is None


Times = namedtuple("Times", "user system idle iowait steal guest")


def quiet(monkeypatch, *, others: float, own: float, load: float, lifetime: float = 1e6):
    """Two CPUs; while `busy` sleeps, others take `others` seconds of them and this process `own`."""
    spent = {"others": 0.0, "own": 0.0, "clock": 100.0}

    def sleep(seconds):
        spent.update(others=others, own=own, clock=100.0 + seconds)

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: spent["clock"])
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 2)
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(50 + spent["own"], spent["others"] / 2, 900, 30, spent["others"] / 2, 7))
    monkeypatch.setattr(module, "_own_seconds", lambda: spent["own"])
    monkeypatch.setattr(psutil, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(module.time, "time", lambda: psutil.Process().create_time() + lifetime)


def test_a_quiet_machine_has_no_note_however_much_we_compute(monkeypatch):
    quiet(monkeypatch, others=0.05, own=0.5, load=0.3)
    assert busy() is None


def test_others_and_stolen_time_make_it_busy(monkeypatch):
    quiet(monkeypatch, others=0.3, own=0.3, load=0.0)
    note = busy()
    assert note is not None
    assert "50% of its 2 CPUs" in note


def test_a_high_load_average_makes_it_busy(monkeypatch):
    quiet(monkeypatch, others=0.0, own=0.0, load=1.5)
    note = busy()
    assert note is not None
    assert "load average of 1.5 on 2 CPUs" in note


def test_our_own_training_is_not_held_against_the_machine(monkeypatch):
    quiet(monkeypatch, others=0.0, own=0.0, load=1.9, lifetime=120.0)
    monkeypatch.setattr(module, "_own_seconds", lambda: 230.0)  # two threads, for two minutes
    assert busy() is None


def test_own_load_follows_the_kernels_average():
    # the kernel: load <- load e^(-5/60) + running (1 - e^(-5/60)), every five seconds
    load, step = 0.0, math.exp(-5 / 60)
    for _ in range(9):
        load = load * step + 2 * (1 - step)
    assert module._own_load(2 * 45.0, 45.0) == pytest.approx(load)
    assert module._own_load(0.0, 0.0) == 0.0


def test_busy_runs_on_this_machine():
    note = busy(0.01)
    assert note is None or note.startswith("the machine was busy")
