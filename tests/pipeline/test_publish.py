"""What an artifact keeps as proof, and a graph's recipe from end to end: one batch that cannot be cut."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.errors import LimbeckError, MismatchError
from limbeck.core.events import Event, Note, silent
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.pipeline import publish
from limbeck.pipeline.check import check
from limbeck.pipeline.modules import load, load_module, read_tensors
from limbeck.pipeline.predict import predict
from limbeck.pipeline.publish import real_batch
from limbeck.pipeline.run import Run, run_recipe
from limbeck.report import write

ADAM = {"kind": "adam", "lr": 0.05}
KD = {"kind": "response.kd", "weight": 0.9}
TREE: dict[str, Any] = {
    "name": "tiny",
    "task": {"kind": "graph", "validation": 12},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "gat", "hidden": 4, "heads": 2}, "epochs": 20, "optimizer": ADAM},
        "student": {
            "kind": "distill",
            "teacher": {"kind": "frozen", "of": "teacher"},
            "model": {"kind": "gcn", "hidden": 3, "dropout": 0.0},
            "epochs": 20,
            "optimizer": ADAM,
            "objectives": [{"kind": "supervised", "weight": 0.1}, KD, {"kind": "graph.lsp", "layers": {"layer1": "layer1"}}],
        },
    },
    "measure": {"seconds": 0.02},
}


def tree(root: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> dict[str, Any]:
    made = copy.deepcopy(TREE)
    made["task"]["root"] = str(root)
    change(made)
    return made


@pytest.fixture
def done(planetoid: Path, tmp_path: Path) -> tuple[Run, list[Event]]:
    heard: list[Event] = []
    return run_recipe(tree(planetoid), out=tmp_path / "run", listener=heard.append), heard


def test_a_graph_s_recipe_runs_to_its_report(done: tuple[Run, list[Event]], planetoid: Path) -> None:
    run, heard = done
    metrics = {name: stage["metrics"] for name, stage in run.stages.items()}
    assert all(metrics[name]["examples"] == 14 and metrics[name]["accuracy"] > 0.7 for name in metrics)
    assert "agreement" in metrics["student"] and metrics["student"]["parameters"] == 6 * 3 + 3 + 3 * 2 + 2
    assert metrics["student"]["macs"] == 6 * 3 + 3 * 2, "of a node, its neighbours' sums left out"
    unmeasured = [event for event in heard if isinstance(event, Note) and "not measured" in event.text]
    assert [(note.stage, note.text) for note in unmeasured] == [
        (name, f"its latency is not measured: a {kind} takes x, edge_index, and an exported file one input")
        for name, kind in (("teacher", "GAT"), ("student", "GCN"))
    ]
    said = read_tensors(run.out / "stages" / "student" / "predictions.safetensors")
    assert sorted(said["ids"].tolist()) == [node for node in range(24, 40) if node not in (26, 31)]
    assert said["labels"].tolist() == [node % 2 for node in said["ids"].tolist()]
    page = write(run.out).read_text()
    assert "not measured: a GCN takes x, edge_index" in page
    again = run_recipe(tree(planetoid), out=run.out, listener=silent)
    assert all(stage["reused"] for stage in again.stages.values())


def test_golden_answers_of_a_graph_go_by_node(done: tuple[Run, list[Event]], planetoid: Path) -> None:
    artifact = Artifact.open(done[0].out / "stages" / "student")
    golden = read_tensors(artifact.path / "golden.safetensors")
    task = build("tasks", "graph", {"root": str(planetoid), "validation": 12})
    batch = real_batch(task, 1)
    assert golden["ids"].tolist() == list(range(8)) and "inputs" not in golden
    torch.testing.assert_close(load_module(artifact)(batch["input"], batch["edge_index"])[:8], golden["outputs"])
    with pytest.raises(MismatchError, match="takes no images: its preprocessing is graph"):
        predict(artifact.path, ["node.png"])


def test_a_perceptron_that_learnt_from_a_graph_network_ships(planetoid: Path, tmp_path: Path) -> None:
    def change(made: dict[str, Any]) -> None:
        made["stages"]["student"] |= {"model": {"kind": "mlp", "widths": [16]}, "objectives": [KD], "epochs": 60}
        made["stages"]["shipped"] = {"kind": "export", "of": "student"}

    run = run_recipe(tree(planetoid, change), out=tmp_path / "run", listener=silent)
    metrics = {name: stage["metrics"] for name, stage in run.stages.items()}
    assert metrics["shipped"]["accuracy"] == metrics["student"]["accuracy"] > 0.7
    assert "latency_ms_p50" in metrics["student"] and "latency_ms_p50" not in metrics["teacher"]
    inputs = real_batch(build("tasks", "graph", {"root": str(planetoid), "validation": 12}), 5)["input"][:5]
    assert inputs.shape == (5, 6)
    torch.testing.assert_close(load(run.out / "stages" / "shipped")(inputs), load(run.out / "stages" / "student")(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t["stages"].update(shipped={"kind": "export", "of": "student"}), "exports student, a GCN that takes x, edge_index"),
        (lambda t: t["stages"]["student"].update(accumulate=2), "an epoch has 1 batches, fewer than the 2"),
        (lambda t: t["stages"]["student"].update(model={"kind": "cnn"}), r"CNN reads images \(C, H, W\), not examples of shape \(6,\)"),
        (lambda t: t["stages"]["student"]["objectives"][2].update(layers={"layer9": "layer1"}), "no layer 'layer9'"),
    ],
)
def test_what_a_graph_cannot_have_is_said_before_step_one(planetoid: Path, change: Callable[[dict[str, Any]], Any], told: str) -> None:
    with pytest.raises(LimbeckError, match=told):
        check(tree(planetoid, change))


def test_an_objective_of_edges_is_refused_where_there_are_none() -> None:
    lsp = {"kind": "graph.lsp", "layers": {"layer1": "layer1"}}
    mlp = {"model": {"kind": "mlp", "widths": [8]}, "epochs": 1}
    stages = {"teacher": {"kind": "train"} | mlp, "student": {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "objectives": [lsp]} | mlp}
    with pytest.raises(LimbeckError, match="reads the field 'edge_index'"):
        check({"name": "none", "task": {"kind": "image", "data": "digits"}, "stages": stages})


def test_real_batches_are_cut_to_what_is_asked_and_put_together_from_small_ones() -> None:
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6) % 2
    task = build("tasks", "classify", {}, {"train": [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:])]}, classes=2)
    assert torch.equal(real_batch(task, 3)["input"], x[:3]) and torch.equal(real_batch(task, 3)["label"], y[:3])
    assert torch.equal(real_batch(task, 100)["input"], x)


def test_the_layers_of_convolutional_networks_are_found_by_themselves_and_those_of_attention_are_asked_for(planetoid: Path) -> None:
    tasks = build("tasks", "graph", {"root": str(planetoid), "validation": 12})
    batch = real_batch(tasks, 1)
    gcn, wide, gat = (build("models", kind, {}, in_shape=(6,), classes=2) for kind in ("gcn", "gcn", "gat"))
    lsp = build("objectives", "graph.lsp", {})
    build("schemes", "offline", {}, gcn, wide, [lsp], tasks, batch, tasks.facts())
    assert lsp.pairs == [("head.convolution.lin:in", "head.convolution.lin:in")]
    with pytest.raises(MismatchError, match=r"gives \[\d+, 1, 2\] for 40 examples.*name another layer"):
        build("schemes", "offline", {}, gcn, gat, [build("objectives", "graph.lsp", {})], tasks, batch, tasks.facts())


@pytest.mark.parametrize(("kept", "shape"), [(10**6, (4, 6, 5)), (60, (2, 6, 5)), (20, (1, 4, 5)), (1, (1, 1, 5))])
def test_of_tokens_as_many_golden_answers_are_kept_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch, kept: int, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(publish, "_KEPT", kept)
    table = torch.randn(9, 5)
    batch = {"input": torch.arange(24).reshape(4, 6) % 9, "label": torch.zeros(4, 6, dtype=torch.int64), "id": torch.arange(4)}
    golden = publish._golden(batch, lambda asked: Knowledge({"main": Dense(table[asked["input"]])}))
    assert golden["outputs"].shape == shape
    assert torch.equal(golden["outputs"], table[golden["inputs"]])
