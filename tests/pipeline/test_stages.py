"""What each kind of stage makes of what it takes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError, ParityError
from limbeck.core.events import EpochDone, Event, Note, Progress, StageStarted, silent
from limbeck.core.files import read_json
from limbeck.pipeline.assemble import micro_batch
from limbeck.pipeline.modules import load, load_module, read_tensors
from limbeck.pipeline.recipe import TrainStage
from limbeck.pipeline.run import Run, run_recipe

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 256},
    "stages": {"teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [16]}, "epochs": 2, "batch_size": 32}},
    "measure": {"latency": False},
}
STUDENT = {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32}


def run(out: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None, heard: list[Event] | None = None) -> Run:
    tree = copy.deepcopy(TREE)
    change(tree)
    return run_recipe(tree, out=out, listener=silent if heard is None else heard.append)


def stage(out: Path, name: str) -> Artifact:
    return Artifact.open(out / "stages" / name)


def test_micro_batches_share_a_step_out_and_refuse_what_does_not_divide() -> None:
    assert micro_batch(TrainStage(batch_size=48, accumulate=3), 2) == 8
    with pytest.raises(MismatchError, match="batch_size 50 does not divide into 3 micro-batches on 2 devices: take a multiple of 6, such as 48"):
        micro_batch(TrainStage(batch_size=50, accumulate=3), 2)


@pytest.mark.parametrize("select", ["best", "last"])
def test_an_artifact_holds_the_best_and_the_last_and_is_the_one_asked_for(tmp_path: Path, select: str) -> None:
    run(tmp_path, lambda t: t["stages"]["teacher"].update(select=select, epochs=6, optimizer={"kind": "sgd", "lr": 0.5}, schedule={"kind": "constant"}))
    made = stage(tmp_path, "teacher")
    chosen, best, last = (read_tensors(made.path / f"{name}.safetensors") for name in ("model", "best", "last"))
    assert all(torch.equal(value, {"best": best, "last": last}[select][name]) for name, value in chosen.items())
    rows = read_json(made.path / "history.json")["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    metrics = made.metrics
    assert rows[metrics["best_epoch"] - 1]["validation_accuracy"] == metrics["validation_accuracy"] == max(row["validation_accuracy"] for row in rows)
    assert metrics["validation_accuracy_last"] == rows[-1]["validation_accuracy"]
    assert (metrics["epochs"], metrics["parameters"]) == (6, 64 * 16 + 16 + 16 * 10 + 10)
    golden = read_tensors(made.path / "golden.safetensors")
    torch.testing.assert_close(load_module(made)(golden["inputs"]), golden["outputs"])
    said = read_tensors(made.path / "predictions.safetensors")
    assert (said["logits"].argmax(1) == said["labels"]).float().mean().item() == pytest.approx(metrics["accuracy"])


def test_a_stage_goes_on_training_another_s_model(tmp_path: Path) -> None:
    slow = {"kind": "train", "init": "teacher", "epochs": 1, "batch_size": 32, "optimizer": {"kind": "sgd", "lr": 1e-9}}
    run(tmp_path, lambda t: t["stages"].update(tuned=slow))
    before, after = (read_tensors(stage(tmp_path, name).model_file) for name in ("teacher", "tuned"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
    assert stage(tmp_path, "tuned").spec["builder"] == "mlp"
    lineage = read_json(stage(tmp_path, "tuned").path / "lineage.json")
    assert lineage["parents"] == {"teacher": stage(tmp_path, "teacher").digest}


def test_several_teachers_teach_and_nobody_agrees_with_several(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["stages"]["other"] = copy.deepcopy(tree["stages"]["teacher"]) | {"epochs": 1}
        tree["stages"]["student"] = STUDENT | {"teacher": {"kind": "ensemble", "of": ["teacher", "other"], "weights": [2, 1]}}

    done = run(tmp_path, change)
    assert "agreement" not in done.stages["student"]["metrics"]
    assert "accuracy" in done.stages["student"]["metrics"]


def test_files_answer_as_the_model_they_came_from(tmp_path: Path) -> None:
    shipped = {"shipped": {"kind": "export", "of": "student"}, "int8": {"kind": "quantize", "of": "shipped", "min_agreement": 0.5}}
    done = run(tmp_path, lambda t: t["stages"].update(student=STUDENT, **shipped))
    inputs = read_tensors(stage(tmp_path, "student").path / "golden.safetensors")["inputs"]
    expected = load(tmp_path / "stages" / "student")(inputs)
    torch.testing.assert_close(load(tmp_path / "stages" / "shipped")(inputs), expected, rtol=1e-4, atol=1e-5)
    assert (load(tmp_path / "stages" / "int8")(inputs) - expected).abs().max() < 0.2 * expected.abs().max()
    metrics = {name: one["metrics"] for name, one in done.stages.items()}
    assert metrics["shipped"]["parity_inputs"] == 256 and metrics["shipped"]["parity_max_abs"] < 1e-4
    assert metrics["int8"]["parity_agreement"] >= 0.5 and metrics["int8"]["parity_sqnr_db"] > 10
    for name in ("shipped", "int8"):
        assert metrics[name]["parameters"] == metrics["student"]["parameters"]
        assert metrics[name]["agreement"] == pytest.approx(metrics["student"]["agreement"], abs=0.05)  # with the teacher at the head of the line
        assert stage(tmp_path, name).kind == "graph"
    assert metrics["shipped"]["accuracy"] == metrics["student"]["accuracy"]


def test_a_file_that_does_not_compute_what_the_model_does_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ParityError) as caught:
        run(tmp_path, lambda t: t["stages"].update(shipped={"kind": "export", "of": "teacher", "tolerance": 1e-12}))
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert stage(tmp_path, "teacher") and not (tmp_path / "stages" / "shipped").exists()
    assert not list(tmp_path.rglob(".*.tmp"))


def test_two_devices_train_what_one_trains(tmp_path: Path) -> None:
    heard: list[Event] = []
    run(tmp_path / "one")
    run(tmp_path / "two", lambda t: t.update(runtime={"devices": 2}), heard)
    one, two = (read_tensors(stage(tmp_path / name, "teacher").model_file) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    rows = [read_json(tmp_path / name / "stages" / "teacher" / "history.json")["epochs"] for name in ("one", "two")]
    assert [row["train_loss"] for row in rows[1]] == pytest.approx([row["train_loss"] for row in rows[0]], rel=1e-4)
    assert [type(event) for event in heard if not isinstance(event, Note)] == [StageStarted, Progress, EpochDone, Progress, EpochDone, type(heard[-1])]
    assert run(tmp_path / "one", lambda t: t.update(runtime={"devices": 2})).stages["teacher"]["reused"]


def test_training_has_the_threads_it_was_given_and_the_process_keeps_its_own(tmp_path: Path) -> None:
    before, during = torch.get_num_threads(), set[int]()
    tree = copy.deepcopy(TREE) | {"runtime": {"threads": before + 1}}
    run_recipe(tree, out=tmp_path, listener=lambda event: during.add(torch.get_num_threads()) if isinstance(event, EpochDone) else None)
    assert (during, torch.get_num_threads()) == ({before + 1}, before)
