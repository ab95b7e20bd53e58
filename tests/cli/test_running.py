"""The main job from the command line, on real digits, for one epoch: everything that a user sees of a run."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from limbeck.cli.entry import invoke
from limbeck.cli.running import results
from limbeck.core.artifact import Artifact

STAGES = ("teacher", "alone", "student", "shipped", "int8")
SHORT = [part for stage in STAGES[:3] for part in ("--set", f"stages.{stage}.epochs=1")] + ["--set", "measure.seconds=0.02"]
LIMBECK = [sys.executable, "-W", "error", "-m", "limbeck"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A finished run, by a process for which every warning is an error."""
    out = tmp_path_factory.mktemp("cli") / "run"
    done = subprocess.run([*LIMBECK, "run", "digits", *SHORT, "--out", str(out), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done


def test_json_is_one_object_of_the_promised_shape(ran):
    out, done = ran
    told = json.loads(done.stdout)
    assert set(told) == {"recipe", "out", "seconds", "report", "stages"}
    assert (told["recipe"], told["out"]) == ("digits", str(out))
    assert Path(told["report"]).read_text().startswith("<!")
    assert tuple(told["stages"]) == STAGES
    for name, stage in told["stages"].items():
        assert set(stage) == {"kind", "artifact", "reused", "metrics"}
        assert stage["reused"] is False
        metrics = Artifact.open(Path(stage["artifact"])).metrics
        assert stage["metrics"].items() <= metrics.items()
        assert {"accuracy", "ece", "parameters", "macs", "file_bytes", "latency_ms_p50", "throughput_per_s"} <= stage["metrics"].keys(), name


def test_progress_goes_to_standard_error_in_plain_lines(ran):
    lines = ran[1].stderr.splitlines()
    assert "\x1b" not in ran[1].stderr
    assert "teacher: train, 20 steps" in lines
    assert any(line.startswith("student: epoch 1/1, loss ") and "validation accuracy" in line for line in lines)
    done = [line for line in lines if ": done in " in line]
    assert [line.partition(":")[0] for line in done] == list(STAGES)
    others = [line for line in lines if not line.startswith((*STAGES, "measurement: "))]
    assert others == []  # no library has said anything


def test_a_second_run_reuses_everything_and_ends_with_a_table(ran, capfd):
    out, first = ran
    assert invoke(["run", "digits", *SHORT, "--out", str(out)]) == 0
    table, progress = capfd.readouterr()
    assert [line.partition(";")[0] for line in progress.splitlines()] == [f"{name}: reused" for name in STAGES]
    rows = {line.split()[0]: line for line in table.splitlines()}
    for name, stage in json.loads(first.stdout)["stages"].items():
        assert f"{100 * stage['metrics']['accuracy']:.1f}% ({100 * stage['metrics']['accuracy_low']:.1f}-" in rows[name]
        assert f" {stage['metrics']['parameters']:,} " in rows[name]
    assert table.splitlines()[-1] == f"Report: {out / 'report.html'}"
    assert "x (" in rows["int8"]


def test_predict_names_classes_and_probabilities(ran, capfd, tmp_path):
    out, _ = ran
    inputs = tmp_path / "x.npy"
    np.save(inputs, np.zeros((3, 8, 8), np.uint8) + np.arange(8, dtype=np.uint8))
    assert invoke(["predict", str(out / "stages/int8"), str(inputs), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [one["index"] for one in told["predictions"]] == [0, 1, 2]
    one = told["predictions"][0]
    assert set(one["probabilities"]) == set("0123456789")
    assert math.isclose(sum(one["probabilities"].values()), 1.0, rel_tol=1e-6)
    assert one["probability"] == max(one["probabilities"].values()) == one["probabilities"][one["class"]]
    assert invoke(["predict", str(out / "stages/int8"), str(inputs), "--top", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith(f"{inputs}[2]  {one['class']} {one['probability']:.1%}  ")
    assert lines[2].count("%") == 2


def test_predict_refuses_other_shapes(ran, capfd, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 9, 8), np.uint8))
    assert invoke(["predict", str(ran[0] / "stages/student"), str(tmp_path / "x.npy")]) == 2
    assert "the model was trained on 8x8" in capfd.readouterr().err


def test_measure_prints_and_writes_nothing(ran, capfd):
    out, _ = ran
    paths = [str(out / "stages" / name) for name in ("shipped", "int8")]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert invoke(["measure", *paths, "--seconds", "0.02", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert set(told["models"]) == set(paths)
    assert told["models"][paths[1]]["file_bytes"] == (out / "stages/int8/model.onnx").stat().st_size
    assert told["ratios"][0]["a"] == paths[0]
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert invoke(["measure", paths[0], paths[0]]) == 2
    assert "named twice" in capfd.readouterr().err


def test_report_is_written_anew(ran, capfd):
    out, _ = ran
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert invoke(["report", str(out)]) == 0
    assert capfd.readouterr().out == f"{out / 'report.html'}\n"
    assert (out / "report.html").read_bytes() == page


def test_clean_lists_then_removes_a_shelved_stage(ran, capfd, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ran[0], run)
    shelved = run / "cache" / "alone-0123456789ab"
    shutil.copytree(run / "stages" / "alone", shelved)
    assert invoke(["clean", str(run), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert str(shelved) in {one["path"] for one in told["leftovers"]}
    assert shelved.exists()
    assert invoke(["clean", str(run), "--yes"]) == 0
    assert str(shelved) in capfd.readouterr().out
    assert not list((run / "cache").iterdir())
    assert Artifact.open(run / "stages" / "alone").name == "alone"


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    run = subprocess.Popen([*LIMBECK, "run", "digits", "--set", "stages.teacher.epochs=1000", "--out", str(out)], stdout=-1, stderr=-1, text=True)
    try:
        for _ in range(600):
            if list(out.glob("work/teacher-*/checkpoints/*/manifest.json")) or run.poll() is not None:
                break
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        text, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert (run.returncode, text) == (130, "")
    assert said.splitlines()[-1].startswith("limbeck: interrupted at step ")
    assert said.endswith("run the same command again to go on\n")
    assert list((out / "work").iterdir())


def test_the_table_does_with_what_there_is():
    stages = {"a": {"metrics": {}}, "b": {"metrics": {"parameters": 5, "file_bytes": 10}}}
    table = results(stages, {"b": "student"}, {})
    assert [column.header for column in table.columns] == ["stage", "accuracy (95%)", "parameters", "file", "latency p50"]
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [["a", "b (student)"], ["-"] * 2, ["-", "5"], ["-", "10 B"], ["-"] * 2]
