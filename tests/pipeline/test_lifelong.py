"""Tasks one after another through a recipe: a model that grows, a memory, the figures, and a task that arrives in a later run."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError
from limbeck.core.events import silent
from limbeck.core.files import read_json
from limbeck.core.task import Facts
from limbeck.pipeline.check import check
from limbeck.pipeline.grown import grown
from limbeck.pipeline.modules import load_module, read_tensors
from limbeck.pipeline.resolve import make_model
from limbeck.pipeline.run import run_recipe
from limbeck.report import write

PLAIN = {"model": {"kind": "mlp", "widths": [12]}, "epochs": 1, "batch_size": 16}
COURSE = {"kind": "lifelong", "tasks": 3}
TAUGHT = {"kind": "distill", "teacher": {"kind": "frozen"}, "objectives": [{"kind": "response.lwf"}, {"kind": "supervised"}], **PLAIN}
STAGES: dict[str, Any] = {
    "lwf": {**TAUGHT, "scheme": COURSE},
    "replay": {**TAUGHT, "transfer": {"kind": "replay", "size": 20}, "scheme": COURSE},
    "der": {"kind": "train", **PLAIN, "scheme": {**COURSE, "within": {"kind": "der", "size": 20}}},
    "icarl": {**TAUGHT, "transfer": {"kind": "replay", "size": 20, "choose": "herding"}, "scheme": {**COURSE, "within": {"kind": "icarl", "size": 20}}},
    "joint": {"kind": "train", **PLAIN, "task": {"joint": True}},
}


def tree(stages: dict[str, Any], tasks: list[list[int]] | None = None) -> dict[str, Any]:
    of = {"kind": "image", "data": "digits", "subset": 500}
    task = {"kind": "split", "of": of, "tasks": tasks or [[0, 1], [2, 3], [4, 5]]}
    return {"name": "toy", "task": task, "stages": copy.deepcopy(stages), "measure": {"latency": False}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lifelong")
    run_recipe(tree(STAGES), out=folder, listener=silent)
    return folder


def test_models_grow_and_carry_their_class_map(out: Path) -> None:
    for number, name in enumerate(("lwf-1", "lwf-2", "lwf"), 1):
        spec = Artifact.open(out / "stages" / name).spec
        assert spec["classes"] == 2 * number and spec["class_names"] == [str(one) for one in range(2 * number)]
        assert spec["preprocess"]["split"]["tasks"] == [2] * number
        assert load_module(Artifact.open(out / "stages" / name))(torch.zeros(1, 1, 8, 8)).shape == (1, 2 * number)


def test_the_matrix_is_what_the_models_say_of_the_test_split(out: Path) -> None:
    told = read_json(out / "lifelong.json")["stages"]
    for number, name in enumerate(("icarl-1", "icarl-2", "icarl"), 1):
        for player, folder in (("", out / "stages" / name), (".nearest_mean", out / "stages" / name / "players" / "nearest_mean")):
            said = read_tensors(folder / "predictions.safetensors")
            right = said["logits"].argmax(1) == said["labels"]
            row = [float(right[said["labels"] // 2 == task].float().mean()) for task in range(number)]
            found = told[f"{name}{player}"]["rows"]["class"]
            assert found[-1] == pytest.approx(row) and len(found) == number
            assert [one[number - 1] for one in found[:-1]] == [None] * (number - 1)
    assert told["lwf"]["rows"]["class"][0][0] == told["lwf-1"]["rows"]["class"][0][0]
    metrics = Artifact.open(out / "stages" / "lwf").metrics
    assert metrics["average_accuracy"] == pytest.approx(sum(told["lwf"]["rows"]["class"][-1]) / 3) and "forgetting" in metrics
    joint = told["joint"]
    assert joint["figures"].keys() == {"average_accuracy", "task_average_accuracy"} and len(joint["rows"]["class"]) == 1


def test_what_is_remembered_is_told(out: Path) -> None:
    told = read_json(out / "lifelong.json")["stages"]
    assert told["lwf"]["memory"] is None
    for name in ("replay", "der", "icarl"):
        assert told[name]["memory"]["examples"] <= 20 and told[name]["memory"]["keep"] == "ids" and told[name]["memory"]["bytes"] < 4000
        assert not any("inputs" in read_tensors(file) for file in (out / "stages" / name).rglob("memory.safetensors"))
    page = write(out).read_text()
    assert "Task after task" in page and "by id, without the examples" in page and "after task 3: " in page


def test_a_second_run_reuses_everything(out: Path) -> None:
    before = (out / "lifelong.json").read_bytes()
    again = run_recipe(tree(STAGES), out=out, listener=silent)
    assert all(stage["reused"] for stage in again.stages.values()) and (out / "lifelong.json").read_bytes() == before
    assert again.stages["der"]["metrics"]["average_accuracy"] > 0


@pytest.mark.parametrize("name", ["replay", "der", "icarl"])
def test_a_task_that_arrives_in_a_later_run_gives_the_same_to_the_bit(out: Path, tmp_path: Path, name: str) -> None:
    first = copy.deepcopy(STAGES[name])
    first["scheme"]["tasks"] = 2
    run_recipe(tree({name: first}, [[0, 1], [2, 3]]), out=tmp_path / "one", listener=silent)
    later = {**copy.deepcopy(STAGES[name]), "model": None, "init": "old"}
    later["scheme"]["first"] = 2
    old = {"kind": "given", "path": str(tmp_path / "one" / "stages" / name)}
    run_recipe(tree({"old": old, name: later}), out=tmp_path / "two", listener=silent)
    whole, parts = Artifact.open(out / "stages" / name), Artifact.open(tmp_path / "two" / "stages" / name)
    ours, theirs = read_tensors(whole.model_file), read_tensors(parts.model_file)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    memory = [read_tensors(one.path / "memory" / "memory.safetensors") for one in (whole, parts)]
    assert all(torch.equal(memory[0][key].nan_to_num(9.0), memory[1][key].nan_to_num(9.0)) for key in memory[0])
    told = [read_json(folder / "lifelong.json")["stages"][name] for folder in (out, tmp_path / "two")]
    assert told[0]["rows"] == told[1]["rows"] and told[0]["figures"] == told[1]["figures"]


def test_another_order_of_classes_is_refused_before_step_one(out: Path) -> None:
    old = {"kind": "given", "path": str(out / "stages" / "lwf-2")}
    later = {**TAUGHT, "model": None, "init": "old", "scheme": {**COURSE, "first": 2}}
    with pytest.raises(MismatchError, match="`init` is a model of the classes 0, 1, 2, 3, and the task's begin with 0, 2, 1, 3"):
        check(tree({"old": old, "s": later}, [[0, 2], [1, 3], [4, 5]]))


def facts(classes: int) -> Facts:
    return Facts((1, 8, 8), classes, tuple(map(str, range(classes))), 9)


def spec(classes: int, **more: Any) -> dict[str, Any]:
    names = [str(one) for one in range(classes)]
    return {"builder": "mlp", "options": {"widths": [5]}, "in_shape": [1, 8, 8], "classes": classes, "class_names": names, **more}


def test_a_model_grows_behind_what_it_knows() -> None:
    model = make_model(spec(3))
    same, told = grown(model, spec(3), facts(3))
    assert same is model and told["classes"] == 3
    wider, told = grown(model, spec(3), facts(5))
    x = torch.randn(4, 1, 8, 8)
    assert torch.allclose(wider(x)[:, :3], model(x)) and wider(x).shape == (4, 5)
    assert told["classes"] == 5 and list(told["class_names"]) == list("01234") and not torch.equal(wider.state_dict()["head.weight"][3:5], torch.zeros(2, 5))


def test_a_model_that_cannot_grow_is_refused() -> None:
    with pytest.raises(MismatchError, match="3 classes that limbeck did not build, and the task has 5"):
        grown(nn.Linear(2, 3), {**spec(3), "builder": None}, facts(5))
    with pytest.raises(MismatchError, match=r"`init` has '.*' of shape \[5, 64\], and for 5 classes it would be \[7, 64\]"):
        grown(make_model(spec(3)), spec(3, options={"widths": [7]}), facts(5))
