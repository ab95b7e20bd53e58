"""A run reuses what stands, goes on where it was killed, and refuses what is damaged or locked."""

import copy
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from limbeck.core.errors import ArtifactError, LimbeckError, LockedError, MismatchError, RecipeError
from limbeck.core.events import Event, Note, StageStarted, silent
from limbeck.core.files import lock, read_json, sha256
from limbeck.pipeline.run import Run, run_recipe

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 256, "augment": [{"kind": "shift", "pixels": 1}]},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [16], "dropout": 0.2}, "epochs": 2, "batch_size": 32, "optimizer": {"kind": "adam"}},
        "student": {
            "kind": "distill",
            "teacher": {"kind": "frozen", "of": "teacher"},
            "model": {"kind": "mlp", "widths": [8]},
            "epochs": 2,
            "batch_size": 32,
            "objectives": [{"kind": "response.kd", "weight": 0.9}, {"kind": "fitnet", "layers": {"layer1": "layer1"}, "weight": 0.01}],
        },
    },
    "measure": {"latency": False},
}
SHIPPED = {"shipped": {"kind": "export", "of": "student"}, "int8": {"kind": "quantize", "of": "shipped", "min_agreement": 0.5, "min_sqnr_db": 1}}


def toy(change: Callable[[dict[str, Any]], Any] = lambda _: None) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    change(tree)
    return tree


def run(out: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None, *, heard: list[Event] | None = None) -> Run:
    return run_recipe(toy(change), out=out, listener=silent if heard is None else heard.append)


def reused(done: Run) -> dict[str, bool]:
    return {name: stage["reused"] for name, stage in done.stages.items()}


def weights(out: Path) -> dict[str, str]:
    """The digest of every file of every stage that must not depend on when or how often a run was killed."""
    told = {
        "model.safetensors",
        "best.safetensors",
        "last.safetensors",
        "model.onnx",
        "predictions.safetensors",
        "golden.safetensors",
        "history.json",
        "spec.json",
    }
    return {str(path.relative_to(out)): sha256(path) for path in sorted((out / "stages").rglob("*")) if path.name in told and "checkpoint" not in path.parts}


def test_a_second_run_reuses_everything_and_says_so(tmp_path: Path) -> None:
    first, before = run(tmp_path), weights(tmp_path)
    assert reused(first) == {"teacher": False, "student": False}
    heard: list[Event] = []
    again = run(tmp_path, heard=heard)
    assert reused(again) == {"teacher": True, "student": True}
    assert not [event for event in heard if isinstance(event, StageStarted)]
    assert weights(tmp_path) == before
    for name, stage in again.stages.items():
        assert stage["metrics"] == first.stages[name]["metrics"]
        assert {"accuracy", "ece", "parameters", "macs", "validation_accuracy", "validation_accuracy_last", "best_epoch"} <= stage["metrics"].keys()
    assert {"agreement", "kl_to_teacher"} <= again.stages["student"]["metrics"].keys()
    told = read_json(tmp_path / "run.json")
    assert told["recipe"] == "toy" and told["roles"]["student"] == "student" and yaml.safe_load(told["recipe_yaml"])["name"] == "toy"
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())
    assert json.dumps(again.as_dict())


def test_the_same_recipe_gives_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two", lambda t: t.update(name="another", runtime={"threads": 1}))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    run(tmp_path / "three", lambda t: t.update(seed=1))
    assert weights(tmp_path / "three")["stages/teacher/model.safetensors"] != weights(tmp_path / "one")["stages/teacher/model.safetensors"]


def test_an_option_that_is_changed_and_changed_back_takes_what_was_shelved(tmp_path: Path) -> None:
    run(tmp_path)
    before = weights(tmp_path)
    assert reused(run(tmp_path, lambda t: t["stages"]["student"].update(batch_size=16))) == {"teacher": True, "student": False}
    assert weights(tmp_path) != before
    assert reused(run(tmp_path)) == {"teacher": True, "student": True}
    assert weights(tmp_path) == before
    assert reused(run(tmp_path, lambda t: t["stages"]["student"].update(batch_size=16))) == {"teacher": True, "student": True}


def test_what_does_not_matter_reuses_and_what_matters_upstream_does_not(tmp_path: Path) -> None:
    run(tmp_path)
    assert reused(run(tmp_path, lambda t: (t.update(name="other"), t["stages"]["teacher"].update(keep=2)))) == {"teacher": True, "student": True}
    assert reused(run(tmp_path, lambda t: t["stages"]["teacher"].update(batch_size=16))) == {"teacher": False, "student": False}
    assert reused(run(tmp_path, lambda t: t["task"].update(class_weight="balanced"))) == {"teacher": False, "student": False}


def epochs(count: int) -> Callable[[dict[str, Any]], None]:
    """Train the teacher alone, for so many epochs, at a rate that does not depend on how many there are."""

    def change(tree: dict[str, Any]) -> None:
        tree["stages"].pop("student")
        tree["stages"]["teacher"].update(epochs=count, schedule={"kind": "constant"})

    return change


def test_more_epochs_go_on_from_a_finished_stage(tmp_path: Path) -> None:
    run(tmp_path / "whole", epochs(5))
    run(tmp_path / "more", epochs(2))
    first = read_json(tmp_path / "more" / "stages" / "teacher" / "lineage.json")
    heard: list[Event] = []
    assert reused(run(tmp_path / "more", epochs(5), heard=heard)) == {"teacher": False}
    assert [event.text for event in heard if isinstance(event, Note)] == ["goes on from epoch 2 of an earlier run of this stage"]
    assert weights(tmp_path / "more") == weights(tmp_path / "whole")
    lineage = read_json(tmp_path / "more" / "stages" / "teacher" / "lineage.json")
    assert first["continued_from"] is None
    assert lineage["continued_from"] == {"epochs": 2, "stage_hash": first["stage_hash"]}
    assert lineage["hash_without_epochs"] == first["hash_without_epochs"]
    assert reused(run(tmp_path / "more", epochs(5))) == {"teacher": True}
    assert reused(run(tmp_path / "more", epochs(2))) == {"teacher": True}  # still on the shelf
    assert reused(run(tmp_path / "more", epochs(1))) == {"teacher": False}  # fewer epochs than any: from the start
    assert read_json(tmp_path / "more" / "stages" / "teacher" / "lineage.json")["continued_from"] is None


def test_a_continued_stage_that_is_killed_still_says_where_it_came_from(tmp_path: Path) -> None:
    run(tmp_path, epochs(2))

    class Killed(Exception):
        pass

    def die(event: Event) -> None:
        if isinstance(event, StageStarted):
            raise Killed

    with pytest.raises(Killed):
        run_recipe(toy(epochs(5)), out=tmp_path, listener=die)
    run(tmp_path, epochs(5))
    lineage = read_json(tmp_path / "stages" / "teacher" / "lineage.json")
    assert lineage["continued_from"]["epochs"] == 2


def test_data_that_change_in_their_test_split_alone_are_compared_anew(tmp_path: Path) -> None:
    made = np.random.default_rng(0)
    arrays = {"x_train": made.normal(size=(80, 5, 5)).astype(np.float32), "y_train": np.arange(80) % 2}
    tests = {"x_test": made.normal(size=(20, 5, 5)).astype(np.float32), "y_test": np.arange(20) % 2}
    found = []
    for flipped in (False, True):
        np.savez(tmp_path / "toy.npz", **arrays, **(tests | ({"y_test": 1 - tests["y_test"]} if flipped else {})))
        run(tmp_path / "out", lambda t: t.update(task={"kind": "image", "data": "npz", "root": str(tmp_path / "toy.npz")}))
        found.append(read_json(tmp_path / "out" / "fidelity.json"))
    right = [sum(row["correct"] for row in one["models"]["student"]["per_class"]) for one in found]
    assert right[0] + right[1] == 20 and right[0] != 10  # every answer that was right is wrong of the opposite labels


@pytest.mark.parametrize("name", ["model.safetensors", "spec.json", "history.json", "manifest.json", "predictions.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_artifact_is_refused_and_left_as_it_is(tmp_path: Path, name: str, damage: str) -> None:
    run(tmp_path, epochs(1))
    file = tmp_path / "stages" / "teacher" / name
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = next(place for place in range(len(whole) // 2, len(whole)) if not whole[place : place + 1].isspace())
        file.write_bytes(whole[:middle] + (bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if damage == "flipped" else b""))
    with pytest.raises(ArtifactError, match="stages/teacher") as caught:
        run(tmp_path, epochs(1))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert file.exists() == (damage != "gone")


def test_metrics_may_grow_and_nothing_else_may(tmp_path: Path) -> None:
    run(tmp_path, epochs(1))
    (tmp_path / "stages" / "teacher" / "metrics.json").write_text(json.dumps(read_json(tmp_path / "stages" / "teacher" / "metrics.json") | {"more": 1.0}))
    assert run(tmp_path, epochs(1)).stages["teacher"]["metrics"]["more"] == 1.0


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(LockedError, match=f"another limbeck run is working in {tmp_path}") as caught:
        run(tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "stages").exists()
    run(tmp_path, epochs(1))


WRONG: list[tuple[Callable[[dict[str, Any]], Any], type[LimbeckError], str]] = [
    (lambda t: t["stages"]["student"]["objectives"][0].update(temprature=3), RecipeError, "no option 'temprature' for objectives.response.kd; did you mean"),
    (lambda t: t["stages"]["student"]["objectives"][0].update(temperature=0), RecipeError, "temperature is 0; it must be a finite number above zero"),
    (
        lambda t: t["stages"]["student"]["objectives"][0].update(kind="response.dk"),
        RecipeError,
        "no part 'response.dk' among objectives; did you mean 'response.dkd'?",
    ),
    (lambda t: t["stages"]["student"]["objectives"][1].update(layers={"layer9": "layer1"}), RecipeError, r"the student \(MLP\) has no layer 'layer9'"),
    (lambda t: t["stages"]["student"]["model"].update(width=3), RecipeError, "no option 'width' for models.mlp; did you mean 'widths'?"),
    (lambda t: t["stages"]["student"]["teacher"].update(kind="frosen"), RecipeError, "no part 'frosen' among teachers; did you mean 'frozen'?"),
    (lambda t: t["stages"]["student"]["teacher"].update(average="logits"), RecipeError, "no option 'average' for teachers.frozen"),
    (lambda t: t["stages"]["student"]["teacher"].update(kind="ensemble"), RecipeError, "the teacher ensemble is made of several stages"),
    (lambda t: t["stages"]["student"].update(scheme={"kind": "online"}), RecipeError, "no part 'online' among schemes"),
    (lambda t: t["stages"]["student"].update(transfer={"kind": "reel"}), RecipeError, "no part 'reel' among transfer; did you mean 'real'?"),
    (
        lambda t: t["stages"]["student"].update(accumulate=5),
        MismatchError,
        "batch_size 32 does not divide into 5 micro-batches on 1 devices: take a multiple of 5",
    ),
    (lambda t: t["stages"].update(out={"kind": "export", "of": "student", "format": "onxx"}), RecipeError, "no part 'onxx' among export; did you mean 'onnx'?"),
    (lambda t: t["stages"]["teacher"].update(objectives=[{"kind": "response.kd"}]), MismatchError, "the objective kd needs a teacher, and there is none"),
    (lambda t: (t["task"].update(validation=0), t["stages"]["student"].update(early_stopping=2)), MismatchError, "early_stopping watches the validation split"),
    (lambda t: t["task"].update(data="digit"), RecipeError, "option 'data' of tasks.image must be 'digits' or"),
    (lambda t: t["task"].update(augment=[{"kind": "shift", "pixels": 0}]), RecipeError, "augment"),
]


@pytest.mark.parametrize(("change", "kind", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_a_mistake_anywhere_is_found_before_anything_is_trained_or_written(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], kind: type[LimbeckError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        run(tmp_path / "out", change)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_a_standing_run_loses_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    before = {str(path): path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with pytest.raises(RecipeError):
        run(tmp_path, WRONG[0][0])
    assert {str(path): path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


PRELOADED = ["limbeck.pipeline.run", "sklearn.datasets", "onnxruntime.quantization", "onnxscript", "torch._dynamo", "torch.onnx.ops"]
"""What a run imports along the way."""


def start(out: Path, tree: dict[str, Any]) -> BaseProcess:
    """Run in a process of its own, forked from a clean one that has torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run_recipe, args=(tree,), kwargs={"out": out, "listener": silent})
    process.start()
    return process


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    tree = toy(lambda t: (t["stages"].update(SHIPPED), t["stages"]["teacher"].update(epochs=25), t["stages"]["student"].update(epochs=25)))
    start(tmp_path / "warm", toy(epochs(1))).join()  # so that the clock does not see the server start
    began = time.monotonic()
    whole = start(tmp_path / "whole", tree)
    whole.join()
    took = time.monotonic() - began
    assert whole.exitcode == 0
    chance, killed = random.Random(20), 0
    for fraction in (0.15, 0.3, 0.5):  # of a whole run: in the teacher, in the student, in the export
        process = start(tmp_path / "killed", tree)
        process.join(took * fraction * chance.uniform(0.8, 1.2))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    last = start(tmp_path / "killed", tree)
    last.join()
    assert last.exitcode == 0 and killed >= 1
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert {"stages/shipped/model.onnx", "stages/int8/model.onnx"} <= weights(tmp_path / "whole").keys()
    assert not list((tmp_path / "killed").rglob(".*.tmp"))
    assert reused(run_recipe(tree, out=tmp_path / "killed", listener=silent)) == dict.fromkeys(tree["stages"], True)


def test_ctrl_c_on_the_command_line_saves_exits_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    tree = toy(epochs(40))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "limbeck", "run", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "stopped")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    saved = tmp_path / "stopped" / "work"
    while process.poll() is None and not list(saved.rglob("manifest.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the state is saved: run the same command again to go on" in said and "Traceback" not in said
    assert not (tmp_path / "stopped" / "stages" / "teacher").exists()
    heard: list[Event] = []
    run_recipe(tree, out=tmp_path / "stopped", listener=heard.append)
    run_recipe(tree, out=tmp_path / "whole", listener=silent)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
