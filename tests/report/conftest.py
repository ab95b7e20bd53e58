"""Synthetic run folders in the schema that a run writes."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

N = 360
RECIPE = """name: digits
seed: 0
task: {kind: image, data: digits}
stages:
  teacher: {kind: train, model: {kind: cnn, width: 64}, epochs: 30}
  alone: {kind: train, model: {kind: cnn, width: 8}, epochs: 30}
  student:
    kind: distill
    teacher: {kind: frozen, of: teacher}
    model: {kind: cnn, width: 8}
    objectives: [{kind: response.kd, temperature: 4.0, weight: 0.9}, {kind: supervised, weight: 0.1}]
    epochs: 30
  shipped: {kind: export, of: student, format: onnx}
  int8: {kind: quantize, of: shipped, method: static_int8}
"""


def wilson(right: int, n: int) -> tuple[float, float]:
    z, p = 1.959964, right / n
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def _quality(right: int, agree: int, ece: float) -> dict[str, Any]:
    low, high = wilson(right, N)
    a_low, a_high = wilson(agree, N)
    return {
        "accuracy": right / N, "accuracy_low": low, "accuracy_high": high, "errors": N - right, "examples": N, "nll": 0.11, "ece": ece,
        "agreement": agree / N, "agreement_low": a_low, "agreement_high": a_high, "kl_to_teacher": 0.043,
    }  # fmt: skip


def _speed(p50: float, per_s: float, memory: int) -> dict[str, Any]:
    return {
        "latency_ms_p50": p50, "latency_ms_p90": p50 * 1.08, "latency_ms_p99": p50 * 1.31, "latency_n": 400,
        "throughput_per_s": per_s, "throughput_batch": 32, "peak_memory_bytes": memory, "steady": True,
    }  # fmt: skip


def _trained(best: float, last: float, at: int) -> dict[str, Any]:
    return {"validation_accuracy": best, "validation_accuracy_last": last, "validation_loss": 0.09, "best_epoch": at, "epochs": 30, "train_seconds": 12.4}


def _history(top: float, seed: int, scale: float) -> dict[str, Any]:
    draw = random.Random(seed)
    return {
        "epochs": [
            {
                "epoch": e, "train_loss": scale * (0.06 + 2.1 * math.exp(-e / 4)), "validation_loss": 0.1, "lr": 0.001, "parts": {"kd": 0.1},
                "validation_accuracy": min(1.0, top - 0.75 * math.exp(-e / 3.2) + draw.uniform(-0.006, 0.006)),
            }
            for e in range(1, 31)
        ]
    }  # fmt: skip


def _reliability(seed: int) -> list[dict[str, Any]]:
    draw, bins = random.Random(seed), []
    for at, count in enumerate([0, 0, 1, 3, 4, 7, 9, 14, 32, 290]):
        low = at / 10
        bins.append(
            {"low": low, "high": low + 0.1, "confidence": low + 0.06, "accuracy": min(1.0, max(0.0, low + 0.06 + draw.uniform(-0.2, 0.12))), "count": count}
        )
    return bins


def files() -> dict[str, Any]:
    """Every file of a realistic run, by its path in the run's folder."""
    big = {"parameters": 1_184_010, "macs": 38_512_000, "file_bytes": 4_741_204}
    small = {"parameters": 96_234, "macs": 1_204_000, "file_bytes": 388_100}
    exact = {"parity_max_abs": 2.1e-6, "parity_max_rel": 3.3e-5, "parity_cosine": 1.0, "parity_agreement": 1.0, "parity_inputs": 256}
    near = {"parity_max_abs": 0.41, "parity_cosine": 0.99932, "parity_agreement": 0.9972, "parity_sqnr_db": 28.7, "parity_inputs": 360}
    stage: dict[str, dict[str, Any]] = {
        "teacher": {"kind": "train", "seconds": 31.2, "metrics": {**_quality(351, 360, 0.011), **_trained(0.993, 0.990, 24), **big}},
        "alone": {"kind": "train", "seconds": 9.1, "metrics": {**_quality(344, 343, 0.027), **_trained(0.972, 0.969, 29), **small}},
        "student": {"kind": "distill", "seconds": 10.4, "metrics": {**_quality(349, 352, 0.019), **_trained(0.986, 0.983, 27), **small}},
        "shipped": {"kind": "export", "seconds": 3.2, "metrics": {**_quality(349, 352, 0.019), **small, "file_bytes": 391_870, **exact}},
        "int8": {"kind": "quantize", "seconds": 2.1, "metrics": {**_quality(348, 351, 0.021), "parameters": 96_234, "file_bytes": 109_400, **near}},
    }
    for name, each in stage.items():
        each |= {"artifact": f"stages/{name}", "reused": name == "teacher"}
    run = {
        "recipe": "digits", "out": "runs/digits", "seconds": 56.3, "created": "2026-11-21T10:02:11+00:00", "command": "limbeck run digits --out runs/digits",
        "environment": {"limbeck": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "onnxruntime": "1.31.1", "numpy": "2.4.0"},
        "recipe_yaml": RECIPE, "notes": [{"text": "validation split: 144 of 1,437 training images", "stage": "teacher", "loud": False}],
        "roles": {name: name for name in stage}, "stages": stage,
    }  # fmt: skip
    totals = [35, 36, 35, 37, 36, 37, 37, 36, 33, 38]
    hits = {
        "teacher": [35, 34, 35, 36, 36, 36, 37, 36, 30, 36],
        "alone": [35, 33, 35, 35, 35, 35, 37, 35, 30, 34],
        "student": [35, 35, 35, 35, 36, 36, 36, 36, 29, 36],
    }
    models = {
        name: {
            "per_class": [{"correct": right, "total": total} for right, total in zip(hits.get(name, hits["student"]), totals, strict=True)],
            "reliability": _reliability(at),
        }
        for at, name in enumerate(stage)
    }
    fidelity = {
        "split": "test", "examples": N, "class_names": [str(digit) for digit in range(10)], "models": models,
        "pairs": [
            {"a": "student", "b": "teacher", "a_only": 4, "b_only": 6, "p": 0.754, "difference": -2 / N, "low": -0.019, "high": 0.007},
            {"a": "student", "b": "alone", "a_only": 8, "b_only": 3, "p": 0.227, "difference": 5 / N, "low": -0.003, "high": 0.031},
            {"a": "int8", "b": "student", "a_only": 0, "b_only": 1, "p": 1.0, "difference": -1 / N, "low": -0.008, "high": 0.003},
        ],
    }  # fmt: skip
    measurement = {
        "machine": {
            "cpu_model": "Intel(R) Xeon(R) Platinum 8481C", "cores": 2, "cpu_flags": ["avx2", "avx512f", "avx512_vnni"],
            "load_average": [0.41, 0.32, 0.30], "platform": "Linux 6.1 x86_64",
        },
        "threads": 1,
        "models": {"teacher": _speed(0.492, 3310, 118_000_000), "shipped": _speed(0.1201, 14_200, 71_000_000), "int8": _speed(0.0713, 22_900, 68_000_000)},
        "ratios": [
            {"a": "teacher", "b": "shipped", "quantity": "latency_ms_p50", "ratio": 4.1, "low": 3.9, "high": 4.3, "n": 400},
            {"a": "teacher", "b": "int8", "quantity": "latency_ms_p50", "ratio": 6.9, "low": 6.5, "high": 7.2, "n": 400},
            {"a": "teacher", "b": "shipped", "quantity": "throughput_per_s", "ratio": 4.29, "low": 4.2, "high": 4.4, "n": 40},
        ],
        "energy": {"source": None, "reason": "no RAPL or NVML counter can be read here"}, "notes": [], "busy": False,
    }  # fmt: skip
    histories = {"teacher": _history(0.99, 1, 1.0), "alone": _history(0.968, 2, 1.2), "student": _history(0.984, 3, 4.5)}
    lineages = {
        name: {
            "stage_hash": f"{at}f3a" * 16, "parents": {"teacher": "ab12" * 16} if name == "student" else {}, "seed": 0,
            "data_fingerprint": "9c0e" * 16, "versions": {"limbeck": "0.1.0", "torch": "2.13.0"},
        }
        for at, name in enumerate(stage)
    }  # fmt: skip
    return {
        "run.json": run, "fidelity.json": fidelity, "measurement.json": measurement,
        **{f"stages/{name}/history.json": history for name, history in histories.items()},
        **{f"stages/{name}/lineage.json": lineage for name, lineage in lineages.items()},
    }  # fmt: skip


def lay(out: Path, content: dict[str, Any]) -> Path:
    """Write a run's files; a string is written as it is, so that it may be damaged."""
    for name, value in content.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return out


@pytest.fixture
def content() -> dict[str, Any]:
    """The files of a realistic run, to be changed at will."""
    return files()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a run's files into a fresh folder and return it."""
    return lambda content: lay(tmp_path / "run", content)
