"""A network with exits through the whole pipeline: figures for every exit, the curve in the report, files of the exits measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.measure.size import macs
from limbeck.models.exits import Exits
from limbeck.pipeline.anytime import anytime
from limbeck.pipeline.modules import load_module
from limbeck.pipeline.predict import predict
from limbeck.pipeline.run import run_recipe
from limbeck.report import write

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 300},
    "stages": {
        "student": {
            "kind": "distill", "teacher": {"kind": "exits"}, "scheme": {"kind": "exits"}, "epochs": 2, "batch_size": 32,
            "model": {"kind": "exits", "of": {"kind": "cnn", "width": 4}, "at": ["layer1", "layer2"]},
            "optimizer": {"kind": "adam", "lr": 0.01},
            "objectives": [{"kind": "response.kd", "weight": 0.3}, {"kind": "supervised", "weight": 0.7}],
        },
        "shipped": {"kind": "export", "of": "student"},
        "whole": {"kind": "export", "of": "student", "format": {"kind": "onnx", "outputs": "all"}},
    },
    "measure": {"latency": True, "seconds": 0.05},
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_recipe(TREE, out=folder, listener=silent)
    return folder


def test_every_exit_has_its_figures(out: Path) -> None:
    artifact = Artifact.open(out / "stages" / "student")
    metrics, model = artifact.metrics, load_module(artifact)
    assert isinstance(model, Exits)
    task = build("tasks", "image", {"data": "digits", "subset": 300})
    said: dict[str, list[torch.Tensor]] = {name: [] for name in model.names}
    labels = []
    with torch.no_grad():
        for batch in task.loader("test", batch_size=64).batches(0):
            labels.append(batch["label"])
            for name, logits in model(batch["input"]).items():
                said[name].append(logits)
    right = {name: float((torch.cat(parts).argmax(-1) == torch.cat(labels)).float().mean()) for name, parts in said.items()}
    assert metrics["accuracy"] == pytest.approx(right["main"])
    for name in ("exit1", "exit2"):
        assert metrics[f"{name}_accuracy"] == pytest.approx(right[name])
        assert metrics[f"{name}_accuracy_low"] < right[name] < metrics[f"{name}_accuracy_high"]
        assert metrics[f"{name}_latency_ms_p50"] > 0
    assert metrics["exit1_macs"] < metrics["exit2_macs"] < metrics["macs"]
    plain = build("models", "cnn", {"width": 4}, in_shape=(1, 8, 8), classes=10)
    assert metrics["main_macs"] == macs(plain, torch.zeros(1, 1, 8, 8)) < metrics["macs"]
    record = json.loads((artifact.path / "exits.json").read_text())
    assert [one["name"] for one in record["exits"]] == ["exit1", "exit2", "main"]
    last = record["policy"][-1]
    assert last["accuracy"] == pytest.approx(right["main"]) and last["macs"] == metrics["macs"], "who never leaves asks every exit"
    assert record["policy"][0]["macs"] == metrics["exit1_macs"]


def test_the_exported_file_is_measured_for_what_it_holds(out: Path) -> None:
    student, shipped, whole = (Artifact.open(out / "stages" / name).metrics for name in ("student", "shipped", "whole"))
    assert (shipped["macs"], shipped["parameters"]) == (student["main_macs"], student["main_parameters"])
    assert (whole["macs"], whole["parameters"]) == (student["macs"], student["parameters"])
    assert shipped["file_bytes"] < whole["file_bytes"]


def test_the_report_draws_the_curve_and_tells_of_every_exit(out: Path) -> None:
    page = write(out).read_text()
    assert "Answers before the end" in page and 'href="#anytime"' in page and 'id="plot-exits-0' in page
    for name in ("exit1", "exit2"):
        assert f'<th scope="row">{name}</th>' in page
    assert page.count(" ms</td>") >= 3


def test_a_network_with_exits_predicts_by_its_main_answer(out: Path, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "image.npy", np.zeros((1, 8, 8), dtype=np.uint8))
    (found,) = predict(out / "stages" / "student", [tmp_path / "image.npy"])
    assert sum(found.probabilities.values()) == pytest.approx(1.0)


def test_a_policy_pays_for_the_exits_that_it_asked() -> None:
    model = Exits((1, 8, 8), 3, of={"kind": "cnn", "width": 4}, at=["layer1", "layer2"]).eval()
    x = torch.randn(1, 1, 8, 8)
    answers = {name: torch.tensor([[1.0, 0.0, 0.0]]) for name in model.names}
    _, record = anytime(model, answers, torch.tensor([0]), x)
    assert record["policy"][-1]["macs"] == macs(model, x, ask=lambda _model: model(x))
