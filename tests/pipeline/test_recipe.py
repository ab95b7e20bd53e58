"""A recipe is refused in one line that names the option and the nearest valid one, or means what it says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.core.errors import RecipeError
from limbeck.core.schedule import Linear
from limbeck.pipeline.recipe import DistillStage, Recipe, TrainStage, builtin, load_recipe, parents, task_of

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits"},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "optimizer": {"kind": "adam"}},
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


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    change(tree)
    return tree


def stages(tree: dict[str, Any]) -> dict[str, Any]:
    return tree["stages"]


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda t: t.update(sede=1), "no option 'sede' in the recipe; did you mean 'seed'?"),
    (lambda t: t.pop("task"), "the recipe needs the option 'task'"),
    (lambda t: t.pop("name"), "the recipe needs the option 'name'"),
    (lambda t: t.update(name="a/b"), "name: string should match pattern"),
    (lambda t: t.update(seed=-1), "seed: input should be greater than or equal to 0, not -1"),
    (lambda t: t.update(task="image"), "task: .*, not 'image'"),
    (lambda t: t["task"].pop("kind"), "task needs the option 'kind'"),
    (lambda t: t.update(stages={}), "stages: dictionary should have at least 1 item"),
    (lambda t: t.update(stages=["teacher"]), "stages: input should be a valid dictionary"),
    (lambda t: t.update(runtime={"device": 2}), "no option 'device' in runtime; did you mean 'devices'?"),
    (lambda t: t.update(measure={"batch": 0}), "measure.batch: input should be greater than or equal to 1, not 0"),
    (lambda t: stages(t)["teacher"].update(epoch=3), "no option 'epoch' in stages.teacher; did you mean 'epochs'?"),
    (lambda t: stages(t)["teacher"].update(epochs=0), "stages.teacher.epochs: input should be greater than or equal to 1, not 0"),
    (lambda t: stages(t)["teacher"].update(epochs="many"), "stages.teacher.epochs: .*integer.*, not 'many'"),
    (lambda t: stages(t)["teacher"].update(kind="trian"), "no kind 'trian' for stages.teacher; did you mean 'train'?"),
    (lambda t: stages(t)["teacher"].pop("kind"), "stages.teacher needs a kind; choices are choose, compress, distill, export, given, quantize, train"),
    (lambda t: stages(t)["teacher"]["optimizer"].update(m=0), "no option 'm' in stages.teacher.optimizer; choices are betas, kind, lr, weight_decay"),
    (lambda t: stages(t)["teacher"].update(optimizer={"kind": "sgd", "momentun": 0}), "no option 'momentun' in .*optimizer; did you mean 'momentum'?"),
    (lambda t: stages(t)["teacher"].update(optimizer={"kind": "adm"}), "no kind 'adm' for stages.teacher.optimizer; did you mean 'adam'?"),
    (lambda t: stages(t)["teacher"].update(optimizer={"lr": 1}), "stages.teacher.optimizer needs a kind; choices are adam, adamw, sgd"),
    (lambda t: stages(t)["teacher"]["optimizer"].update(lr=-1), "stages.teacher.optimizer.lr: input should be greater than 0, not -1"),
    (lambda t: stages(t)["teacher"].update(schedule={"kind": "multistep"}), "stages.teacher.schedule needs the option 'milestones'"),
    (lambda t: stages(t)["student"].pop("teacher"), "stages.student needs the option 'teacher'"),
    (lambda t: stages(t)["student"].update(objectives=[]), "stages.student.objectives: list should have at least 1 item"),
    (lambda t: stages(t)["student"].update(objectives="response.kd"), "stages.student.objectives: input should be a valid list, not 'response.kd'"),
    (lambda t: stages(t)["student"]["objectives"][1].pop("kind"), "stages.student.objectives.1 needs the option 'kind'"),
    (lambda t: stages(t)["student"]["objectives"][0].update(weight=-0.5), "the weight of response.kd in stage 'student' is -0.5; .* zero or more"),
    (lambda t: stages(t)["student"]["objectives"][0].update(weight=float("nan")), "the weight of response.kd in stage 'student' is nan"),
    (lambda t: stages(t)["student"]["objectives"][0].update(weight="high"), "stages.student.objectives.0.weight: .* a valid number, .*, not 'high'"),
    (
        lambda t: stages(t)["student"]["objectives"][0].update(weight={"kind": "linear", "strat": 1}),
        "no option 'strat' in stages.student.objectives.0.weight; did you mean 'start'?",
    ),
    (
        lambda t: stages(t)["student"]["objectives"][0].update(weight={"kind": "linaer"}),
        "no kind 'linaer' for stages.student.objectives.0.weight; did you mean 'linear'?",
    ),
    (lambda t: stages(t)["student"]["teacher"].update(of="techer"), "stage 'student' takes 'techer', which is not there; did you mean 'teacher'?"),
    (lambda t: stages(t)["student"]["teacher"].update(of="int8"), "stage 'student' takes 'int8', which comes later: a stage takes from stages above it"),
    (lambda t: stages(t)["student"]["teacher"].update(of="student"), "stage 'student' takes 'student', which comes later"),
    (lambda t: stages(t)["student"].pop("model"), "stage 'student' needs `model` .*, `init` .*, or both"),
    (lambda t: stages(t)["int8"].update(of="student"), r"stage 'int8' \(quantize\) takes a graph, and 'student' gives a module: export it first"),
    (
        lambda t: stages(t).update(more={"kind": "export", "of": "shipped"}),
        r"stage 'more' \(export\) takes a module, and 'shipped' gives a graph: take the stage that trained it",
    ),
    (
        lambda t: stages(t).update(more={**stages(t)["student"], "model": None, "init": "shipped"}),
        r"stage 'more' \(distill\) takes a module, and 'shipped' gives a graph",
    ),
    (lambda t: stages(t).update({"a b": stages(t)["teacher"]}), "a stage cannot be called 'a b': letters, digits, - and _ only"),
    (lambda t: stages(t).update({"..": stages(t)["teacher"]}), "a stage cannot be called '..'"),
    (lambda t: stages(t).update(train={"kind": "train", "model": {"kind": "mlp"}, "epohcs": 1}), "no option 'epohcs' in stages.train; did you mean 'epochs'?"),
    (lambda t: stages(t)["shipped"].update(format={"knid": "onnx"}), "stages.shipped.format needs the option 'kind'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_mistake_is_answered_in_one_line(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}") as caught:
        load_recipe(changed(change))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert caught.value.exit_code == 2


def test_what_is_given_is_shown_in_short() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(changed(lambda t: t.update(seed=list(range(1000)))))
    assert len(str(caught.value)) < 200


def test_the_whole_is_read() -> None:
    recipe = load_recipe(changed(lambda t: stages(t)["student"]["objectives"][0].update(weight={"kind": "linear", "end": 0}, temperature=4)))
    student = recipe.stages["student"]
    assert isinstance(student, DistillStage) and student.kind == "distill"
    assert student.objectives[0].weight == Linear(end=0)
    assert student.objectives[0].options == {"temperature": 4}
    assert [parents(stage) for stage in recipe.stages.values()] == [[], ["teacher"], ["student"], ["shipped"]]
    assert isinstance(recipe.stages["teacher"], TrainStage)


def test_a_recipe_in_full_reads_back_as_itself() -> None:
    for source in (TREE, *builtin()):
        try:
            recipe = load_recipe(source)
        except RecipeError as error:
            assert "environment variable" in str(error)
            continue
        assert load_recipe(yaml.safe_load(recipe.as_yaml())) == recipe == load_recipe(recipe)


def test_every_recipe_that_ships_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_DATA", "/somewhere")
    assert "digits" in builtin()
    assert all(load_recipe(name).name == name for name in builtin())


def setting(*sets: str) -> Recipe:
    return load_recipe(TREE, sets)


def test_settings_reach_every_level() -> None:
    recipe = setting(
        "seed=3", "stages.student.epochs=7", "stages.student.objectives.0.temperature=2.5", "stages.student.objectives.1={kind: supervised, weight: 2}",
        "stages.teacher.model.widths.0=32", "stages.teacher.optimizer={kind: sgd, lr: 1e-2}", "runtime.threads=2", "stages.student.clip=null", "task.subset=10",
    )  # fmt: skip
    teacher, student = recipe.stages["teacher"], recipe.stages["student"]
    assert isinstance(teacher, TrainStage) and isinstance(student, DistillStage) and teacher.model is not None
    assert (recipe.seed, student.epochs, recipe.runtime.threads, student.clip, recipe.task.options["subset"]) == (3, 7, 2, None, 10)
    assert student.objectives[0].options["temperature"] == 2.5 and student.objectives[1].weight == 2
    assert teacher.model.options["widths"] == [32]
    assert (teacher.optimizer.kind, teacher.optimizer.lr) == ("sgd", 0.01)
    assert TREE["stages"]["student"]["objectives"][0] == {"kind": "response.kd", "weight": 0.9}  # what was given stays as it was


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ("stages.student.epochs", r"--set 'stages.student.epochs' must read a.b.c=value"),
        ("=3", "--set '=3' must read a.b.c=value"),
        ("stages.studnet.epochs=3", "--set stages.studnet.epochs: there is no stage 'studnet'; did you mean 'student'?"),
        ("stages.student.objectives.2.weight=1", "stages.student.objectives is a list of 2, and '2' is no index of it"),
        ("stages.student.objectives.kd.weight=1", "stages.student.objectives is a list of 2, and 'kd' is no index of it"),
        ("stages.student.objectives.-1.weight=1", "'-1' is no index of it"),
        ("stages.student.objectives.².weight=1", "'²' is no index of it"),
        ("name.first=1", "--set name.first: name is 'toy' and has no 'first'"),
        ("stages.student.epohcs=3", "no option 'epohcs' in stages.student; did you mean 'epochs'?"),
        ("stage.student.epochs=3", "no option 'stage' in the recipe; did you mean 'stages'?"),
        ("stages.student.objectives=[{kind: kd", "the value of --set stages.student.objectives is not YAML: "),
        ("stages.student.epochs=${NOT_SET_ANYWHERE}", "environment variable NOT_SET_ANYWHERE, which is not set"),
    ],
)  # fmt: skip
def test_a_setting_that_leads_nowhere_is_refused(one: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        setting(one)
    assert message in str(caught.value) or str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def write(folder: Path, root: str | None, name: str = "toy.yaml") -> Path:
    tree = changed(lambda t: t["task"].update({"data": "npz", "root": root} if root else {}))
    (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / name


def test_a_root_in_a_file_is_relative_to_the_file_and_one_in_a_setting_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipes", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = write(tmp_path / "recipes", "../data/toy.npz")
    assert load_recipe(file).task.options["root"] == str(tmp_path / "data" / "toy.npz")
    assert load_recipe(str(file), ["task.root=toy.npz"]).task.options["root"] == str(tmp_path / "here" / "toy.npz")
    absolute = write(tmp_path / "recipes", str(tmp_path / "toy.npz"))
    assert load_recipe(absolute).task.options["root"] == str(tmp_path / "toy.npz")
    mapping = changed(lambda t: t["task"].update(data="npz", root=Path("toy.npz")))
    assert load_recipe(mapping).task.options["root"] == str(tmp_path / "here" / "toy.npz")
    other = load_recipe(write(tmp_path / "recipes", None), ["stages.teacher.task={root: ../tea.npz}", "stages.student.task.root=tea.npz"])
    tasks = [task_of(other, name).options["root"] for name in ("teacher", "student", "int8")]
    assert tasks == [str(tmp_path / "tea.npz"), str(tmp_path / "here" / "tea.npz"), str(tmp_path / "here" / "tea.npz")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(write(tmp_path / "recipes", "~/toy.npz")).task.options["root"] == str(tmp_path / "toy.npz")


def test_environment_variables_are_read_and_their_absence_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOY_DATA", raising=False)
    file = write(tmp_path, "${TOY_DATA}/toy.npz")
    with pytest.raises(RecipeError, match=r"reads the environment variable TOY_DATA, which is not set: export TOY_DATA=\.\.\., or give the option with --set$"):
        load_recipe(file)
    assert load_recipe(file, [f"task.root={tmp_path}/other.npz"]).task.options["root"] == f"{tmp_path}/other.npz"  # as the message says
    monkeypatch.setenv("TOY_DATA", "/data")
    assert load_recipe(file).task.options["root"] == "/data/toy.npz"
    assert load_recipe(write(tmp_path, "${TOY_ELSEWHERE:-/default}/toy.npz")).task.options["root"] == "/default/toy.npz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [toy", "is not YAML: "),
        ("name: toy\n\ttask: 3", "is not YAML: "),
        ("- a\n- b\n", "is no recipe: it must be a mapping with name, task and stages"),
        ("", "is no recipe"),
        ("name: toy\nname: tea\n", "is not YAML: the key 'name' is given twice"),
        ("stages: {a: {kind: train, epochs: 1, epochs: 2}}", "the key 'epochs' is given twice"),
        ("name: !!python/object/apply:os.system ['true']", "is not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "bad.yaml")
    assert message in str(caught.value) and str(tmp_path / "bad.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match=r"bad\.yaml cannot be read as text: "):
        load_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "there is no recipe 'digit'; did you mean 'digits'? (built in; or give a .yaml file)"),
        ("nowhere/toy.yaml", "there is no recipe file 'nowhere/toy.yaml'; built-in recipes are "),
        ("", "there is no recipe ''"),
    ],
)
def test_a_recipe_that_is_not_there_is_named_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert str(caught.value).startswith(message)


def test_anchors_and_merges_of_yaml_work(tmp_path: Path) -> None:
    text = "name: toy\ntask: {kind: image}\nstages:\n  one: &one {kind: train, model: {kind: mlp}, epochs: 3}\n  two: {<<: *one, epochs: 4}\n"
    (tmp_path / "toy.yaml").write_text(text)
    two = load_recipe(tmp_path / "toy.yaml").stages["two"]
    assert isinstance(two, TrainStage) and two.epochs == 4 and two.model is not None
