import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from limbeck.core.errors import ArtifactError, LimbeckError, RecipeError
from limbeck.measure import latency
from limbeck.measure._worker import load
from limbeck.measure.latency import ModelFile, measure_files

KEYS = {
    "file_bytes", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "latency_n", "throughput_per_s", "throughput_batch", "throughput_n",
    "peak_memory_bytes", "baseline_memory_bytes", "steady",
}  # fmt: skip
QUICK = {"rounds": 4, "seconds": 0.1}


def mlp(path: Path, width: int, batch: int | str = "N", kind: int = TensorProto.FLOAT, dtype: type = np.float32, inputs: int = 1) -> ModelFile:
    """64 -> width -> 10, of weights of zero; with two inputs the second is not used by the products."""
    names = ["x", "unused"][:inputs]
    weights = [numpy_helper.from_array(np.zeros((64, width), dtype), "w"), numpy_helper.from_array(np.zeros((width, 10), dtype), "v")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    given = [helper.make_tensor_value_info(name, kind, [batch, 64]) for name in names]
    graph = helper.make_graph(nodes, "mlp", given, [helper.make_tensor_value_info("y", kind, [batch, 10])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return ModelFile(path, (64,))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"teacher": mlp(folder / "teacher.onnx", 4096), "student": mlp(folder / "student.onnx", 16)}


@pytest.fixture(scope="module")
def measured(files):
    heavy = np.ones(300 * 2**20 // 8)  # a launching process that holds much, as one with PyTorch does
    found = measure_files(files, powercap=Path("/nowhere"), **QUICK)
    assert heavy[0] == 1
    return found


def test_the_answer_has_the_schema_of_measurement_json(measured, files):
    assert set(measured) == {"machine", "threads", "models", "ratios", "energy", "notes", "busy"}
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert list(measured["models"]) == ["teacher", "student"]
    for name, model in measured["models"].items():
        assert set(model) == KEYS
        assert model["file_bytes"] == files[name].path.stat().st_size
        assert 0 < model["latency_ms_p50"] <= model["latency_ms_p90"] <= model["latency_ms_p99"]
        assert model["latency_n"] >= 200
        assert model["latency_n"] % 4 == 0
        assert (model["throughput_batch"], model["throughput_n"]) == (32, 4)
        assert model["throughput_per_s"] > 0
    assert isinstance(measured["busy"], bool)
    assert measured["busy"] == any("busy" in note for note in measured["notes"])
    assert any("pinned" in note for note in measured["notes"])


def test_the_ratio_says_how_many_times_faster_than_the_first(measured):
    [row] = measured["ratios"]
    assert (row["a"], row["b"], row["quantity"], row["n"]) == ("teacher", "student", "latency_ms_p50", 4)
    assert row["low"] <= row["ratio"] <= row["high"]
    rounds = {"slow": [4.0, 8.0, 12.0], "fast": [1.0, 2.0, 3.0], "slower": [8.0, 16.0, 24.0]}
    rows = latency._ratios({"models": {name: {"round_medians_ms": medians} for name, medians in rounds.items()}}, list(rounds), seed=0)
    assert [(row["a"], row["b"], row["ratio"], row["low"], row["high"]) for row in rows] == [("slow", "fast", 4, 4, 4), ("slow", "slower", 0.5, 0.5, 0.5)]


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_memory_is_the_childs_own_whatever_its_parent_held(measured):
    for model in measured["models"].values():
        assert 10 * 2**20 < model["baseline_memory_bytes"] < 250 * 2**20
        assert model["baseline_memory_bytes"] <= model["peak_memory_bytes"] < 300 * 2**20


def request(files, task="time", **over):
    told = [{"name": n, "path": str(f.path), "in_shape": list(f.in_shape), "dtype": f.dtype} for n, f in files.items()]
    return {"task": task, "models": told, "threads": 1, "rounds": 7, "seconds": 0.05, "batch": 4, "seed": 3, "powercap": "/nowhere", **over}


def test_models_interleave_in_an_order_that_the_seed_decides(files, tmp_path):
    three = {**files, "other": mlp(tmp_path / "other.onnx", 32)}
    answer = latency._ask(request(three), 60)
    assert len(answer["orders"]) == 7
    assert all(sorted(turn) == [0, 1, 2] for turn in answer["orders"])
    assert len({tuple(turn) for turn in answer["orders"]}) > 1
    assert answer["orders"] == latency._ask(request(three), 60)["orders"]
    assert all(len(model["round_medians_ms"]) == 7 for model in answer["models"].values())
    assert 0 < answer["cpu_share"] <= 1.1
    if sys.platform == "linux":
        assert len(answer["cpus"]) == 1


def test_the_worker_never_imports_torch():
    code = "import sys, limbeck.measure._worker; print('torch' in sys.modules, 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def test_without_a_counter_energy_is_absent_with_the_reason(measured):
    assert measured["energy"]["source"] is None
    assert "no RAPL package zone" in measured["energy"]["reason"]
    assert not any("energy_j_per_inference" in model for model in measured["models"].values())


def test_energy_comes_from_a_counter_that_moves(files, tmp_path, monkeypatch):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "5"), ("max_energy_range_uj", "1000")):
        (zone / name).write_text(text)
    still = measure_files({"student": files["student"]}, powercap=tmp_path, **QUICK)
    assert still["energy"]["source"] is None
    assert "stood still" in still["energy"]["reason"]
    assert "energy_j_per_inference" not in still["models"]["student"]
    asked = latency._ask

    def moved(request, timeout):
        answer = asked(request, timeout)
        for model in answer.get("models", {}).values():
            model["energy_j_per_inference"] = 0.002
        return answer

    monkeypatch.setattr(latency, "_ask", moved)
    spent = measure_files({"student": files["student"]}, powercap=tmp_path, **QUICK)
    assert spent["energy"] == {"source": "rapl", "reason": ""}
    assert spent["models"]["student"]["energy_j_per_inference"] == 0.002


def test_other_types_of_input_are_measured(tmp_path):
    double = replace(mlp(tmp_path / "double.onnx", 8, kind=TensorProto.DOUBLE, dtype=np.float64), dtype="float64")
    tokens = replace(mlp(tmp_path / "tokens.onnx", 8, kind=TensorProto.INT64, dtype=np.int64), dtype="int64")
    answer = latency._ask(request({"double": double, "tokens": tokens}), 60)
    assert all(math.isfinite(model["latency_ms_p50"]) for model in answer["models"].values())


def refused(files, error, says, **over):
    with pytest.raises(error, match=says) as raised:
        measure_files(files, **{**QUICK, **over})
    assert "\n" not in str(raised.value)


def test_a_missing_or_damaged_file_is_one_clear_line(files, tmp_path):
    refused({"gone": ModelFile(tmp_path / "gone.onnx", (64,))}, ArtifactError, r"gone.*missing")
    whole = files["student"].path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    refused({"cut": ModelFile(tmp_path / "cut.onnx", (64,))}, ArtifactError, r"cut\.onnx")
    odd = onnx.load(files["student"].path)
    odd.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(odd, tmp_path / "odd.onnx")
    refused(
        {"student": files["student"], "odd": ModelFile(tmp_path / "odd.onnx", (64,))}, ArtifactError, r"measure odd: onnxruntime cannot load .*NoSuchOperator"
    )


@pytest.mark.parametrize(
    ("make", "change", "says"),
    [
        ({}, {"in_shape": (65,)}, r"\['N', 64\], the data are \[batch, 65\]"),
        ({}, {"in_shape": (8, 8)}, r"the data are \[batch, 8, 8\]"),
        ({}, {"dtype": "int64"}, "is float32, the data are int64"),
        ({"batch": 1}, {}, "fixed to 1: export it with a dynamic batch"),
    ],
)
def test_a_file_that_does_not_take_the_data_names_both_sides(tmp_path, make, change, says):
    file = replace(mlp(tmp_path / "m.onnx", 8, **make), **change)
    with pytest.raises(ArtifactError, match=f"cannot measure m: .*{says}"):
        latency._ask(request({"m": file}), 60)


def test_what_a_file_takes_beside_its_input_is_all_ones(tmp_path):
    file = mlp(tmp_path / "m.onnx", 8, inputs=2)
    fed = load(request({"m": file})["models"][0] | {"in_shape": [64]}, threads=1, batch=3, seed=0).batched[0]
    assert fed["x"].shape == fed["unused"].shape == (3, 64) and fed["x"].std() > 0
    assert (fed["unused"] == 1).all()
    assert latency._ask(request({"m": file}), 60)["models"]["m"]["latency_n"] >= 200


def test_a_model_that_fails_while_running_names_itself(tmp_path):
    value = helper.make_tensor_value_info
    shape = numpy_helper.from_array(np.array([3, 7], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "bad",
        [value("x", TensorProto.FLOAT, ["N", 64])],
        [value("y", TensorProto.FLOAT, [3, 7])],
        [shape],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "bad.onnx")
    with pytest.raises(ArtifactError, match="cannot measure bad: onnxruntime cannot run it"):
        latency._ask(request({"bad": ModelFile(tmp_path / "bad.onnx", (64,))}), 60)


def test_numbers_that_cannot_be_meant_are_refused_before_anything_runs(files):
    refused({}, RecipeError, "no model")
    for over, says in (({"threads": 0}, "threads 0"), ({"threads": 10_000}, "threads 10000"), ({"rounds": 1}, "rounds 1"), ({"batch": 0}, "batch 0")):
        refused(files, RecipeError, says, **over)
    refused(files, RecipeError, "seconds", seconds=math.nan)


def test_a_process_that_hangs_or_is_killed_is_told(files, tmp_path, monkeypatch):
    with pytest.raises(LimbeckError, match=r"teacher, student took longer than 0\.01 s"):
        latency._ask(request(files), 0.01)
    for script, says in (("echo oh no >&2; kill -SEGV $$", r"killed by SIGSEGV\): oh no"), ("exit 3", "exit code 3"), ("exit 0", "exit code 0")):
        shell = tmp_path / "python"
        shell.write_text(f"#!/bin/sh\n{script}\n")
        shell.chmod(0o755)
        monkeypatch.setattr(latency.sys, "executable", str(shell))
        with pytest.raises(ArtifactError, match=says):
            latency._ask(request(files), 60)


def test_a_busy_machine_is_told_loudly():
    answer = {"cpu_share": 0.71, "cpus": [1], "models": {"a": {"steady": True}, "b": {"steady": False}}, "energy": {"source": "rapl", "reason": ""}}
    notes, loud = latency._notes(answer, "the machine was busy: others", 2.0)
    assert loud
    assert notes[0] == "the machine was busy: others"
    assert "only 71% of the time" in notes[1]
    assert notes[2].startswith("b did not become steady within 1.0 s")
    assert notes[-1] == "pinned to CPU 1"
    calm = {**answer, "cpu_share": 0.99, "cpus": [], "models": {"a": {"steady": True}}, "energy": {"source": None, "reason": "none"}}
    assert latency._notes(calm, None, 2.0) == (["not pinned: this platform cannot pin a process to CPUs"], False)
