"""What a stage's hash depends on, and what it does not."""

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import find
from limbeck.pipeline import resolve
from limbeck.pipeline.assemble import assemble
from limbeck.pipeline.recipe import Part, Recipe, TrainStage, load_recipe
from limbeck.pipeline.resolve import full, graph_part, make_model, make_tasks, model_spec, stage_hashes

DIGESTS = {"teacher": "a" * 64, "other": "b" * 64, "student": "c" * 64, "shipped": "d" * 64}
TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits"},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [8]}},
        "other": {"kind": "train", "init": "teacher"},
        "student": {
            "kind": "distill",
            "teacher": {"kind": "frozen", "of": "teacher"},
            "model": {"kind": "mlp"},
            "objectives": [{"kind": "response.kd", "weight": 0.9}, {"kind": "supervised"}],
        },
        "shipped": {"kind": "export", "of": "student"},
        "int8": {"kind": "quantize", "of": "shipped"},
    },
}


def recipe_of(change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Recipe:
    tree = copy.deepcopy(TREE)
    change(tree)
    return load_recipe(tree)


def hashes(recipe: Recipe, digests: Mapping[str, str] = DIGESTS) -> dict[str, tuple[str, str]]:
    tasks = make_tasks(recipe)
    return {name: stage_hashes(recipe, name, tasks[name], digests) for name in recipe.stages}


def differing(change: Callable[[dict[str, Any]], Any], digests: Mapping[str, str] = DIGESTS) -> set[str]:
    before, after = hashes(recipe_of()), hashes(recipe_of(change), digests)
    return {name for name in before if before[name][0] != after[name][0]}


ALL = {"teacher", "other", "student", "shipped", "int8"}
TRAINED = {"teacher", "other", "student"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.update(seed=1), ALL),
        (lambda t: t["task"].update(validation=0.2), ALL),
        (lambda t: t["task"].update(split_seed=1), ALL),
        (lambda t: t["task"].update(augment=[{"kind": "shift", "pixels": 1}]), ALL),
        (lambda t: t["task"].update(class_weight="balanced"), ALL),
        (lambda t: t["stages"]["teacher"].update(task={"subset": 100}), {"teacher"}),
        (lambda t: t["stages"]["teacher"].update(epochs=3), {"teacher"}),
        (lambda t: t["stages"]["teacher"].update(batch_size=64), {"teacher"}),
        (lambda t: t["stages"]["teacher"].update(select="last"), {"teacher"}),
        (lambda t: t["stages"]["teacher"].update(precision="bf16-mixed"), {"teacher"}),
        (lambda t: t["stages"]["teacher"].update(optimizer={"kind": "sgd", "lr": 0.1}), {"teacher"}),
        (lambda t: t["stages"]["teacher"].update(schedule={"kind": "cosine", "end": 0.1}), {"teacher"}),
        (lambda t: t["stages"]["teacher"]["model"].update(widths=[9]), {"teacher"}),
        (lambda t: t["stages"]["student"]["objectives"][0].update(temperature=5.0), {"student"}),
        (lambda t: t["stages"]["student"]["objectives"][0].update(weight=0.8), {"student"}),
        (lambda t: t["stages"]["student"]["objectives"][0].update(weight={"kind": "linear"}), {"student"}),
        (lambda t: t["stages"]["student"]["objectives"].reverse(), {"student"}),
        (lambda t: t["stages"]["student"].update(teacher={"kind": "frozen", "of": "other"}), {"student"}),
        (lambda t: t["stages"]["student"].update(teacher={"kind": "ensemble", "of": ["teacher", "other"]}), {"student"}),
        (lambda t: t["stages"]["shipped"].update(format={"kind": "onnx", "opset": 18}), {"shipped"}),
        (lambda t: t["stages"]["shipped"].update(tolerance=1e-3), {"shipped"}),
        (lambda t: t["stages"]["int8"].update(min_agreement=0.9), {"int8"}),
        (lambda t: t["stages"]["int8"].update(method={"kind": "static_int8", "per_channel": False}), {"int8"}),
    ],
)  # fmt: skip
def test_what_matters_changes_the_hash_of_what_it_matters_to(change: Callable[[dict[str, Any]], Any], expected: set[str]) -> None:
    assert differing(change) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(name="another"),
        lambda t: t.update(runtime={"devices": 2, "threads": 3, "tensorboard": True}),
        lambda t: t.update(measure={"latency": False}),
        lambda t: t["stages"]["teacher"].update(keep=3),
        lambda t: t["stages"]["teacher"]["model"].update(dropout=0.0),  # the default, written out
        lambda t: t["stages"]["student"]["objectives"][0].update(kind="kd", temperature=4),
        lambda t: t["stages"]["shipped"].update(format={"kind": "onnx", "opset": 20}),
        lambda t: t["stages"]["int8"].update(method="quantize.static_int8"),
        lambda t: t["stages"].update(last=t["stages"]["teacher"]),
    ],
)  # fmt: skip
def test_what_does_not_matter_changes_no_hash(change: Callable[[dict[str, Any]], Any]) -> None:
    assert differing(change) == set()


@pytest.mark.parametrize(("parent", "expected"), [("teacher", {"other", "student"}), ("student", {"shipped"}), ("shipped", {"int8"}), ("other", set())])
def test_a_parent_s_content_matters_to_its_children_alone(parent: str, expected: set[str]) -> None:
    assert differing(lambda _: None, {**DIGESTS, parent: "e" * 64}) == expected


def test_a_stage_s_name_does_not_matter() -> None:
    recipe = recipe_of(lambda t: t["stages"].update(again=copy.deepcopy(t["stages"]["teacher"])))
    told = hashes(recipe)
    assert told["again"] == told["teacher"]


def test_only_epochs_are_left_out_of_the_second_hash() -> None:
    base, longer, wider = hashes(recipe_of()), hashes(recipe_of(longer_teacher)), hashes(recipe_of(lambda t: t["stages"]["teacher"].update(batch_size=8)))
    assert base["teacher"][0] != longer["teacher"][0] and base["teacher"][1] == longer["teacher"][1]
    assert base["teacher"][1] != wider["teacher"][1]


def longer_teacher(tree: dict[str, Any]) -> None:
    tree["stages"]["teacher"]["epochs"] = 99


def test_limbeck_s_version_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(recipe_of())
    monkeypatch.setattr(resolve, "VERSION", "99.0")
    after = hashes(recipe_of())
    assert all(before[name][0] != after[name][0] for name in before)


def test_the_bytes_of_the_data_matter_and_where_they_lie_does_not(tmp_path: Path) -> None:
    made = np.random.default_rng(0)
    images, labels = made.normal(size=(40, 5, 5)).astype(np.float32), np.arange(40) % 2
    (tmp_path / "there").mkdir()
    here, there = tmp_path / "toy.npz", tmp_path / "there" / "other.npz"
    np.savez(here, x=images, y=labels)
    shutil.copy(here, there)

    def at(path: Path) -> dict[str, tuple[str, str]]:
        return hashes(recipe_of(lambda t: t["task"].update(data="npz", root=str(path))))

    assert at(here) == at(there)
    images[3, 2, 2] += 1
    np.savez(there, x=images, y=labels)
    assert not set(at(here).values()) & set(at(there).values())


def test_the_source_of_a_user_s_part_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from torch import nn\n\ndef build(in_shape, classes, width=3):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    file = tmp_path / "toy_model_of_mine.py"
    file.write_text(source)

    def told(**options: Any) -> dict[str, tuple[str, str]]:
        return hashes(recipe_of(lambda t: t["stages"]["teacher"].update(model={"kind": "python:toy_model_of_mine:build", **options})))

    before, wider = told(), told(width=4)
    assert told(width=3) == before
    file.write_text(source + "# another thought\n")
    after = told()
    assert before["teacher"] != after["teacher"] != wider["teacher"] != before["teacher"]
    assert {name for name in before if before[name] != after[name]} == {"teacher"}


@pytest.mark.parametrize(
    ("slot", "kind", "options", "message"),
    [
        ("models", "mpl", {}, "no part 'mpl' among models; did you mean 'mlp'?"),
        ("models", "mlp", {"width": [3]}, "no option 'width' for models.mlp; did you mean 'widths'?"),
        ("models", "mlp", {"widths": "wide"}, "option 'widths' of models.mlp must be a list, not 'wide'"),
        ("objectives", "response.kd", {"temprature": 3}, "no option 'temprature' for objectives.response.kd; did you mean 'temperature'?"),
        ("objectives", "fitnet", {"layers": "layer1"}, "option 'layers' of objectives.feature.fitnet"),
        ("tasks", "image", {"augmnet": []}, "no option 'augmnet' for tasks.image; did you mean 'augment'?"),
        ("teachers", "frozen", {"model": 3}, "no option 'model' for teachers.frozen"),
        ("models", "python:nowhere_at_all:build", {}, "there is no module 'nowhere_at_all'"),
    ],
)
def test_a_part_or_option_that_is_not_there_is_named_with_the_nearest(slot: str, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        full(slot, Part(kind=kind, **options))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_part_in_full_has_its_whole_name_and_every_option() -> None:
    assert full("objectives", Part(kind="kd")) == {"kind": "response.kd", "temperature": 4.0}
    assert full("models", Part.model_validate({"kind": "mlp", "widths": [3]})) == {"kind": "mlp", "widths": [3], "dropout": 0.0, "input_dropout": 0.0}
    assert graph_part("compress", "static_int8").kind == "quantize.static_int8"
    assert graph_part("compress", Part.model_validate({"kind": "static_int8", "per_channel": False})).options == {"per_channel": False}


def test_a_model_is_built_again_from_its_spec() -> None:
    recipe = recipe_of()
    facts = make_tasks(recipe)["teacher"].facts()
    spec = model_spec(Part.model_validate({"kind": "mlp", "widths": [7]}), facts)
    torch.manual_seed(0)
    one = make_model(spec)
    torch.manual_seed(0)
    two = make_model(spec)
    assert spec == {"builder": "mlp", "options": {"widths": [7], "dropout": 0.0, "input_dropout": 0.0}, "in_shape": [1, 8, 8], "classes": 10}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"kind": "frozen", "of": ["teacher", "other"]}, r"the teacher frozen is made of one stage, of: name; given is of: \['teacher', 'other'\]"),
        ({"kind": "frozen", "of": ["teacher"]}, "the teacher frozen is made of one stage"),
        ({"kind": "ensemble", "of": "teacher"}, r"the teacher ensemble is made of several stages, of: \[one, other\]; given is of: 'teacher'"),
        ({"kind": "frozen", "of": None}, "the teacher frozen is made of one stage, of: name; given is of: None"),
        ({"kind": "ensemble", "of": ["teacher"]}, "an ensemble of 1: give two teachers or more"),
    ],
)
def test_a_teacher_is_made_of_as_many_stages_as_it_takes(teacher: dict[str, Any], message: str) -> None:
    recipe = recipe_of(lambda t: t["stages"]["student"].update(teacher=teacher))
    task, stage = make_tasks(recipe)["student"], recipe.stages["student"]
    assert isinstance(stage, TrainStage)
    models = [make_model(model_spec(Part(kind="mlp"), task.facts())) for _ in range(3)]
    of = teacher["of"] if isinstance(teacher["of"], list) else [teacher["of"]]
    with pytest.raises(RecipeError, match=message):
        assemble("student", stage, models[0], models[1 : 1 + len(of)], task, seed=0)


def test_models_of_other_classes_do_not_fit() -> None:
    recipe = recipe_of()
    task, stage = make_tasks(recipe)["student"], recipe.stages["student"]
    assert isinstance(stage, TrainStage)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(MismatchError, match=r"10.*7|7.*10") as caught:
        assemble("student", stage, make_model(model_spec(Part(kind="mlp"), task.facts())), [teacher], task, seed=0)
    assert "\n" not in str(caught.value)
    fitting = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    made = assemble("student", stage, make_model(model_spec(Part(kind="mlp"), task.facts())), [fitting], task, seed=0)
    assert isinstance(made.scheme, find("schemes", "offline"))
