"""A recipe's cached teacher: recorded once, read by every later student, equal to the teacher itself on the same views, and its body left alone."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError
from limbeck.core.events import EpochDone, Event, Note, silent
from limbeck.core.lookup import build
from limbeck.core.objective import Term
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.models.mlp import MLP
from limbeck.pipeline import recorded, stages
from limbeck.pipeline.check import check
from limbeck.pipeline.doctor import dry
from limbeck.pipeline.easy import distill
from limbeck.pipeline.modules import read_tensors
from limbeck.pipeline.recorded import record
from limbeck.pipeline.run import Run, run_recipe
from limbeck.schemes.offline import Offline
from limbeck.tasks.image import Image
from limbeck.teachers.cached import Cached
from limbeck.teachers.frozen import Frozen

MLP_OF = {"kind": "mlp", "widths": [8]}
TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 200, "augment": [{"kind": "shift", "pixels": 1}]},
    "stages": {"teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [16]}, "epochs": 1, "batch_size": 32}},
    "measure": {"latency": False},
}
STUDENT: dict[str, Any] = {
    "kind": "distill", "teacher": {"kind": "cached", "of": "teacher", "views": 2}, "model": MLP_OF, "epochs": 3, "batch_size": 32,
    "objectives": [{"kind": "response.kd"}, {"kind": "supervised"}],
}  # fmt: skip
SHIFTED: list[Any] = [{"kind": "shift", "pixels": 1}]


def tree(**students: dict[str, Any]) -> dict[str, Any]:
    whole = copy.deepcopy(TREE)
    whole["stages"] |= {name: {**copy.deepcopy(STUDENT), **change} for name, change in students.items()}
    return whole


def run(out: Path, listener: Callable[[Event], None] = silent, **students: dict[str, Any]) -> Run:
    return run_recipe(tree(**students), out=out, listener=listener)


def cached(**options: Any) -> dict[str, Any]:
    return {"teacher": {"kind": "cached", "of": "teacher", "views": 2, **options}}


def test_a_second_student_reads_what_was_recorded_and_the_body_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    run(tmp_path, lambda event: heard.append(event.text) if isinstance(event, Note) else None, student={})
    assert [text.split(":")[0] for text in heard[-2:]] == ["what teacher says is recorded", heard[-1]] and heard[-1].startswith("recorded 400 records")
    stores = sorted((tmp_path / "knowledge").iterdir())
    written = {path: path.stat().st_mtime_ns for path in stores[0].iterdir()}

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher's body was loaded")

    for module in (stages, recorded):
        monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(stages, "load_module", refuse)
    done = run(tmp_path, student={}, second={"model": {"kind": "mlp", "widths": [12]}})
    assert [stage["reused"] for stage in done.stages.values()] == [True, True, False]
    assert sorted((tmp_path / "knowledge").iterdir()) == stores and len(stores) == 1
    assert {path: path.stat().st_mtime_ns for path in stores[0].iterdir()} == written


def trained(taught: Any, task: Image, *, epochs: int = 4, work: Path | None = None, listener: Callable[[Event], None] = silent) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    loader = task.loader("train", batch_size=16, seed=3, views=2)
    terms = [Term(build("objectives", "response.kd", {}), 0.9), Term(build("objectives", "feature.fitnet", {"layers": {"layer1": "layer1"}}))]
    scheme = Offline(MLP((1, 8, 8), 10, widths=(12,)), taught, terms, task, next(loader.batches(0)), task.facts())
    plan = Training(epochs=epochs, batch_size=16)
    fit(scheme, task, loader, plan, Runtime(), work=work and Work(work, work / "logs"), listener=listener)
    return {name: value.clone() for name, value in scheme.state_dict().items()}


@pytest.fixture
def task() -> Image:
    return Image(data="digits", subset=96, augment=SHIFTED)


@pytest.fixture
def teacher() -> MLP:
    torch.manual_seed(0)
    return MLP((1, 8, 8), 10, widths=(24,)).eval()


def test_a_student_of_the_store_equals_one_of_the_teacher_itself_on_the_same_views(task: Image, teacher: MLP, tmp_path: Path) -> None:
    folder = record(teacher, task, tmp_path / "store", views=2, features=["layer1"], seed=3)
    ours, theirs = trained(Cached(folder), task), trained(Frozen(teacher), task)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=1e-6), name
    once = trained(Cached(record(teacher, task, tmp_path / "other", views=2, features=["layer1"], seed=3, dtype="float16")), task)
    assert not all(torch.equal(once[name], value) for name, value in theirs.items())  # the test can tell


def test_killed_and_interrupted_training_goes_on_to_the_same_bits(task: Image, teacher: MLP, tmp_path: Path) -> None:
    folder = record(teacher, task, tmp_path / "store", views=2, features=["layer1"], seed=3)
    whole = trained(Cached(folder), task)

    class Killed(Exception):
        pass

    def die(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(Cached(folder), task, work=tmp_path / "work", listener=die)
    resumed = trained(Cached(folder), task, work=tmp_path / "work")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not any("teacher" in name for name in whole)


def test_recipes_of_store_and_teacher_agree(tmp_path: Path) -> None:
    plain = {"task": {"augment": []}}
    run(tmp_path, student=plain, frozen={**plain, "teacher": {"kind": "frozen", "of": "teacher"}})
    one, other = (read_tensors(Artifact.open(tmp_path / "stages" / name).path / "last.safetensors") for name in ("student", "frozen"))
    assert all(torch.allclose(one[name], value, atol=1e-6) for name, value in other.items())


@pytest.mark.parametrize(
    "change", [cached(views=3), cached(keep={"kind": "topk", "k": 3, "temperature": 4.0}), cached(dtype="float16"), cached(features=["layer1"]),
               {"task": {"augment": []}}, {"reseed": 1}]
)  # fmt: skip
def test_other_knowledge_is_recorded_beside_it(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, student={"epochs": 1}, second={"epochs": 1, **change})
    assert len(list((tmp_path / "knowledge").iterdir())) == 2


def test_how_the_mass_of_the_others_is_read_needs_no_second_recording(tmp_path: Path) -> None:
    keep = {"kind": "topk", "k": 3, "temperature": 4.0}
    run(tmp_path, student={"epochs": 1, **cached(keep=keep)}, second={"epochs": 1, **cached(keep={**keep, "tail": "renormalized_biased"})})
    assert len(list((tmp_path / "knowledge").iterdir())) == 1
    weights = [(tmp_path / "stages" / name / "last.safetensors").read_bytes() for name in ("student", "second")]
    assert weights[0] != weights[1]


def test_a_check_records_nothing_and_binds_what_would_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(line.startswith("stage student: distill") for line in check(tree(student={})))
    assert not list(tmp_path.iterdir())
    topk = cached(keep={"kind": "topk", "k": 3, "temperature": 2.0})
    for change, error, told in (
        ({"objectives": [{"kind": "feature.fitnet", "layers": {"layer1": "layer1"}}]}, MismatchError, r"'layer1' is not recorded, no layer is: name it"),
        (cached(features=["layer9"]), RecipeError, r"no layer 'layer9'"),
        (topk, MismatchError, "KD's temperature is 4.*valid there alone: take temperature: 2"),
        ({**topk, "objectives": [{"kind": "response.dist"}]}, MismatchError, "DIST reads whole logits.*the 3 likeliest of 10 classes at temperature 2"),
        (cached(keep={"kind": "topk", "k": 10, "temperature": 4.0}), RecipeError, "keep.k is 10, and the teacher knows 10 classes"),
        (cached(keep={"kind": "topk", "k": 0, "temperature": 4.0}), RecipeError, r"option 'keep.k' of teachers.cached should be greater"),
        (cached(keep={"kind": "top", "k": 3}), RecipeError, "has no kind 'top'; did you mean 'topk'"),
        (cached(views=0), RecipeError, "option 'views' of teachers.cached should be greater than or equal to 1"),
        (cached(of=["teacher"]), RecipeError, "the teacher cached is made of one stage, of: name"),
        ({"teacher": {"kind": "cached"}}, RecipeError, "the teacher cached is made of one stage, of: name"),
    ):
        with pytest.raises(error, match=told):
            check(tree(student=change))


def test_features_of_a_store_teach_hints(tmp_path: Path) -> None:
    keep = {"kind": "topk", "k": 3, "temperature": 4.0}
    hint = {"kind": "feature.fitnet", "layers": {"layer1": "layer1"}}
    assert run(tmp_path, student={**cached(keep=keep, features=["layer1"]), "objectives": [hint, {"kind": "response.kd"}]}).stages["student"]["metrics"]


def test_the_doctor_examines_it(tmp_path: Path) -> None:
    keep = {"kind": "topk", "k": 3, "temperature": 4.0}
    run(tmp_path, student={"epochs": 1}, sparse={"epochs": 1, **cached(keep=keep)})
    _, found = dry(tree(student={}, sparse=cached(keep=keep)), out=tmp_path)
    assert not [one for name in ("student", "sparse") for one in found[name] if one.level == "fault" and one.about != "teacher's skill"]


def test_damage_and_another_store_in_its_place_are_told(tmp_path: Path) -> None:
    run(tmp_path, student={"epochs": 1})
    (store,) = (tmp_path / "knowledge").iterdir()
    file = store / "00-output-main.bin"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match its checksum in shard 0: the store is damaged; delete"):
        run(tmp_path, student={"epochs": 1}, second={})
    record(MLP((1, 8, 8), 10), Image(data="digits", subset=96), tmp_path / "else")
    for path in store.iterdir():
        path.unlink()
    store.rmdir()
    (tmp_path / "else").rename(store)
    with pytest.raises(MismatchError, match="is stale: it was recorded of another teacher"):
        run(tmp_path, student={"epochs": 1}, second={})


MINE = """
import torch
from limbeck.core.task import Loader
from limbeck.core.transfer import Transfer

class Nameless(Transfer):
    '''Inputs that are invented anew in every epoch.'''
    def loader(self, task, **how):
        return _Without(task.loader("train", **how))

class _Without(Loader):
    def __init__(self, inner):
        self.inner = inner
    def __len__(self):
        return len(self.inner)
    def batches(self, epoch, *, skip=0):
        for batch in self.inner.batches(epoch, skip=skip):
            yield {"input": torch.randn_like(batch["input"]), "label": batch["label"]}

class Louder(Transfer):
    '''The task's own inputs, louder: a pure function of them.'''
    def __init__(self, *, factor: float = 2.0):
        self.factor = factor
    def loader(self, task, **how):
        return _Louder(task.loader("train", **how), self.factor)

class _Louder(_Without):
    def __init__(self, inner, factor):
        super().__init__(inner)
        self.factor = factor
    def batches(self, epoch, *, skip=0):
        for batch in self.inner.batches(epoch, skip=skip):
            yield {**batch, "input": batch["input"] * self.factor}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "recorded_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("recorded_parts", None)


@pytest.mark.usefixtures("mine")
def test_a_transfer_set_is_part_of_what_is_recorded_and_one_that_invents_is_refused(tmp_path: Path) -> None:
    louder = [{"transfer": {"kind": "python:recorded_parts:Louder", "factor": factor}} for factor in (2.0, 3.0)]
    run(tmp_path / "run", student={"epochs": 1}, second={"epochs": 2, **louder[0]}, third={"epochs": 1, **louder[1]})
    assert len(list((tmp_path / "run" / "knowledge").iterdir())) == 3
    with pytest.raises(MismatchError, match=r"transfer.python:recorded_parts:Nameless does not say which example \('id'\).*teach by \{kind: frozen\}"):
        check(tree(student={"transfer": {"kind": "python:recorded_parts:Nameless"}}))


def test_two_ranks_read_the_store_of_one(tmp_path: Path) -> None:
    run(tmp_path, student={"epochs": 1})
    stores = list((tmp_path / "knowledge").iterdir())
    done = run_recipe({**tree(student={"epochs": 1}, second={}), "runtime": {"devices": 2}}, out=tmp_path, listener=silent)
    assert [stage["reused"] for stage in done.stages.values()] == [True, True, False]
    assert list((tmp_path / "knowledge").iterdir()) == stores


def test_distill_in_one_call_with_a_store(task: Image, teacher: MLP, tmp_path: Path) -> None:
    folder = record(teacher, task, tmp_path / "store", views=2)
    done = distill(Cached(folder), MLP((1, 8, 8), 10, widths=(12,)), task, epochs=3, training={"batch_size": 16}, out=tmp_path / "out")
    assert len(done.history) == 3 and "accuracy" in done.metrics and "agreement" not in done.metrics
    with pytest.raises(MismatchError, match="is not what the teacher saw"):
        distill(Cached(folder), MLP((1, 8, 8), 10, widths=(12,)), task, epochs=1, seed=1, training={"batch_size": 64})


def test_a_loop_of_ones_own(task: Image, teacher: MLP, tmp_path: Path) -> None:
    folder = record(teacher, task, tmp_path / "store", views=2)
    kd = Offline(MLP((1, 8, 8), 10, widths=(12,)), Cached(folder), [build("objectives", "response.kd", {})])
    loader = task.loader("train", batch_size=32, views=2)
    step = torch.optim.SGD(kd.parameters(), lr=0.1)
    losses = []
    for epoch in range(6):
        for batch in loader.batches(epoch):
            step.zero_grad()
            loss = kd(batch).loss
            loss.backward()
            step.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    with pytest.raises(MismatchError, match="no field 'id'"):
        kd((batch["input"], batch["label"]))


def test_interrupted_recording_leaves_no_store_and_the_next_run_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("limbeck.teachers._store_writer.Writer.seal", stop)
        with pytest.raises(Stop):
            run(tmp_path, student={})
    assert [path.suffix for path in (tmp_path / "knowledge").iterdir()] == [".partial"]
    assert not (tmp_path / "stages" / "student").exists()
    run(tmp_path, student={})
    assert [path.suffix for path in (tmp_path / "knowledge").iterdir()] == [""]
