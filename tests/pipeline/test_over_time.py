"""Stages that are made of others: schemes over time, players beside the student, artifacts of another run, parts that draw from a stage."""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.pipeline.check import check
from limbeck.pipeline.modules import load_module
from limbeck.pipeline.recipe import load_recipe
from limbeck.pipeline.run import Run, roles, run_recipe

MINE = '''
from limbeck.core.scheme import Course, Losses, Scheme
from limbeck.core.transfer import Transfer
from limbeck.core.teacher import Teacher
from limbeck.models.mlp import MLP
from limbeck.schemes.offline import Offline


class Twice(Course):
    def __init__(self, *, epochs: int = 1):
        self.epochs = epochs

    def expand(self, name, stage, earlier):
        if self.epochs > 5:
            return {"teacher": {**stage}, name: stage}
        first = {**stage, "epochs": self.epochs}
        return {f"{name}-1": first, name: {**stage, "init": f"{name}-1", "model": None}}


class Pair(Scheme):
    """Two students, each taught by the labels alone; the second is a model of the scheme's own."""

    phases = ("student", "friend")

    def __init__(self, student, teacher, objectives, task, example, facts):
        super().__init__()
        self.student = Offline(student, None, objectives, task, example, facts)
        self.friend = Offline(MLP(facts.in_shape, facts.classes, widths=(4,)), None, objectives, task, example, facts)

    def players(self):
        return {name: getattr(self, name).players()["student"] for name in self.phases}

    def optimizers(self):
        return {}

    def forward(self, batch, phase="student"):
        found = getattr(self, phase)(batch)
        return Losses({phase: found.sums["student"]}, found.count, found.parts)

    def shipped(self):
        return {name: getattr(self, name).student for name in self.phases}

    def specs(self):
        return {"friend": {"kind": "mlp", "widths": [4]}}

    def leave(self, folder):
        (folder / "note.txt").write_text("left by the scheme")

    def after_step(self):
        pass


class Noted(Transfer):
    """The task's own inputs, where an earlier stage has left a note."""

    def __init__(self, source):
        assert (source.path / "note.txt").read_text() == "left by the scheme"

    def loader(self, task, **how):
        return task.loader("train", **how)
'''
TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 256},
    "stages": {"teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [16]}, "epochs": 2, "batch_size": 32}},
    "measure": {"latency": False},
}
STUDENT = {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32}
PAIR = {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32, "scheme": {"kind": "python:over_time_parts:Pair"}}


@pytest.fixture(autouse=True)
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "over_time_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("over_time_parts", None)


def tree(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    whole = copy.deepcopy(TREE)
    change(whole["stages"])
    return whole


def run(out: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Run:
    return run_recipe(tree(change), out=out, listener=silent)


def course(**options: Any) -> dict[str, Any]:
    return {**STUDENT, "scheme": {"kind": "python:over_time_parts:Twice", **options}}


def test_a_scheme_over_time_becomes_ordinary_stages(tmp_path: Path) -> None:
    recipe = load_recipe(tree(lambda s: s.update(student=course(epochs=2))))
    assert list(recipe.stages) == ["teacher", "student-1", "student"]
    assert all(stage.scheme.kind == "offline" for stage in recipe.stages.values())  # pyright: ignore[reportAttributeAccessIssue]
    assert load_recipe(recipe) == recipe
    done = run(tmp_path / "run", lambda s: s.update(student=course(epochs=2)))
    assert done.stages["student-1"]["metrics"]["epochs"] == 2
    assert all(stage["reused"] for stage in run(tmp_path / "run", lambda s: s.update(student=course(epochs=2))).stages.values())


def test_a_course_that_makes_a_stage_that_is_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="makes a stage 'teacher', and there is one of that name: rename it"):
        load_recipe(tree(lambda s: s.update(student=course(epochs=9))))
    with pytest.raises(RecipeError, match="draws from no stage"):
        load_recipe(tree(lambda s: s.update(student=course(of="teacher"))))


def test_every_player_that_ships_has_an_artifact_and_can_teach(tmp_path: Path) -> None:
    def pair(stages: dict[str, Any]) -> None:
        stages["pair"] = PAIR
        stages["student"] = {**STUDENT, "teacher": {"kind": "frozen", "of": "pair.friend"}}

    done = run(tmp_path, pair)
    artifact = Artifact.open(tmp_path / "stages" / "pair")
    assert (artifact.path / "note.txt").is_file()
    friend = artifact.players["friend"]
    assert friend.name == "pair.friend"
    assert friend.spec["options"]["widths"] == [4]
    assert friend.metrics["parameters"] == 64 * 4 + 4 + 4 * 10 + 10
    assert load_module(friend)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    friend.add_metrics({"later": 1.0})
    assert Artifact.open(artifact.path).digest == artifact.digest
    again = run(tmp_path, pair)
    assert [stage["reused"] for stage in again.stages.values()] == [True, True, True]
    assert set(done.stages) == {"teacher", "pair", "student"}


def test_a_changed_player_teaches_anew(tmp_path: Path) -> None:
    def pair(epochs: int) -> Callable[[dict[str, Any]], None]:
        return lambda stages: stages.update(pair={**PAIR, "epochs": epochs}, student={**STUDENT, "teacher": {"kind": "frozen", "of": "pair.friend"}})

    run(tmp_path, pair(1))
    assert not run(tmp_path, pair(2)).stages["student"]["reused"]


def test_a_player_that_there_is_not_is_named() -> None:
    with pytest.raises(MismatchError, match="stage 'pair' ships no player 'frend' beside its student; did you mean 'friend'"):
        check(tree(lambda s: s.update(pair=PAIR, student={**STUDENT, "teacher": {"kind": "frozen", "of": "pair.frend"}})))


def test_a_given_artifact_teaches_as_one_s_own(tmp_path: Path) -> None:
    run(tmp_path / "one")
    path = str(tmp_path / "one" / "stages" / "teacher")
    given = {"kind": "given", "path": path}
    done = run(tmp_path / "two", lambda s: s.update(teacher=given, student=STUDENT))
    first, second = Artifact.open(Path(path)), Artifact.open(tmp_path / "two" / "stages" / "teacher")
    assert first.digest == second.digest
    assert done.stages["teacher"]["metrics"]["accuracy"] == first.metrics["accuracy"]
    assert run(tmp_path / "two", lambda s: s.update(teacher=given, student=STUDENT)).stages["teacher"]["reused"]


def test_a_part_draws_from_what_a_stage_has_left(tmp_path: Path) -> None:
    noted = {**STUDENT, "transfer": {"kind": "python:over_time_parts:Noted", "of": "pair"}}
    lines = check(tree(lambda s: s.update(pair=PAIR, student=noted)))
    assert any("put together when pair has run" in line for line in lines)
    assert run(tmp_path, lambda s: s.update(pair=PAIR, student=noted)).stages["student"]["metrics"]["epochs"] == 1
    for transfer, message in (({"kind": "python:over_time_parts:Noted"}, "name it, of: stage"), ({"kind": "real", "of": "teacher"}, "draws from no stage")):
        with pytest.raises(RecipeError, match=message):
            run(tmp_path / "no", lambda s, transfer=transfer: s.update(student={**STUDENT, "transfer": transfer}))


def test_a_student_that_was_its_own_teacher_has_neither_teacher_nor_alone_in_the_report() -> None:
    grown = {**STUDENT, "model": None, "init": "teacher"}
    other = {"kind": "train", "init": "teacher", "epochs": 1, "batch_size": 32}
    recipe = load_recipe(tree(lambda s: s.update(other=other, student=grown)))
    assert roles(recipe) == {"teacher": None, "alone": None, "student": "student", "shipped": None, "int8": None}
    plain = load_recipe(tree(lambda s: s.update(alone={**other, "init": None, "model": STUDENT["model"]}, student=STUDENT)))
    assert (roles(plain)["teacher"], roles(plain)["alone"]) == ("teacher", "alone")


def test_a_teacher_is_asked_about_inputs_as_it_was_trained_on(tmp_path: Path) -> None:
    raw = {**TREE["stages"]["teacher"], "task": {"normalize": False}}
    with pytest.raises(MismatchError, match=r"the teacher teacher of stage student was trained on inputs with mean \[0\.0\], and is asked about .* mean \[0\."):
        check(tree(lambda s: s.update(teacher=raw, student=STUDENT)))
    check(tree(lambda s: s.update(teacher={**raw, "task": {"subset": 200}}, student=STUDENT)))  # a subset's mean is another, by a little
    run_recipe(tree(lambda s: s.update(teacher=raw)), out=tmp_path, listener=silent)
    given = {"kind": "given", "path": str(tmp_path / "stages" / "teacher")}
    with pytest.raises(MismatchError, match="was trained on inputs with mean"):
        check(tree(lambda s: s.update(teacher=given, student=STUDENT)))
