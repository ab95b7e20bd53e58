"""A black box answers, shows nothing else, is asked once where its answers are kept, and teaches from a recipe, from Python and in a loop of one's own."""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

import limbeck
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.task import Task, default_task
from limbeck.core.teacher import as_teacher
from limbeck.pipeline.check import check
from limbeck.pipeline.modules import Graph
from limbeck.pipeline.run import run_recipe
from limbeck.tasks.classify import Classify
from limbeck.teachers.blackbox import BlackBox

FOREST = {"kind": "fitted", "estimator": "python:sklearn.ensemble:RandomForestClassifier", "options": {"n_estimators": 5}}
STUDENT = {"kind": "distill", "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32}


class Counting:
    """Three classes by the sign of the first value; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        self.asked += len(inputs)
        p = np.full((len(inputs), 3), 0.1)
        p[np.arange(len(inputs)), (inputs.reshape(len(inputs), -1)[:, 0] > 0).astype(int)] = 0.8
        return p


def ready(teacher: BlackBox, task: Task | None = None) -> BlackBox:
    teacher.prepare(Reads(), default_task() if task is None else task)
    return teacher


def digits(**options: Any) -> Task:
    return build("tasks", "image", {"data": "digits", "subset": 96, **options})


def batch(*values: float, **fields: Any) -> dict[str, torch.Tensor]:
    return {"input": torch.tensor(values)[:, None].repeat(1, 2), "id": torch.arange(len(values)), **fields}


def tree(**teacher: Any) -> dict[str, Any]:
    student = {**STUDENT, "teacher": {"kind": "blackbox", **teacher}}
    return {"name": "t", "task": {"kind": "image", "data": "digits", "subset": 96}, "stages": {"student": student}, "measure": {"latency": False}}


def test_its_probabilities_are_its_response() -> None:
    said = ready(BlackBox(Counting()))(batch(1.0, -1.0))
    assert said.main.link == "softmax" and not said.main.logits.requires_grad
    torch.testing.assert_close(said.main.logits.softmax(1), torch.tensor([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_inputs_of_any_type(dtype: torch.dtype) -> None:
    assert ready(BlackBox(Counting()))({"input": torch.tensor([[1.0], [-2.0]]).to(dtype)}).main.logits.argmax(1).tolist() == [1, 0]


def test_another_field_may_be_what_it_is_asked_about() -> None:
    raw = {"raw": torch.tensor([[-1.0], [1.0]])}
    assert ready(BlackBox(Counting(), field="raw"))(batch(1.0, 1.0, **raw)).main.logits.argmax(1).tolist() == [0, 1]
    with pytest.raises(MismatchError, match="asked about the field 'raw', and the batch has input, id"):
        ready(BlackBox(Counting(), field="raw"))(batch(1.0))


@pytest.mark.parametrize(
    ("reads", "what"),
    [
        (Reads(features=frozenset({"layer2"})), "layer2"), (Reads(modules=frozenset({"head"})), "head"),
        (Reads(input_gradient=True), "the gradient of its input"), (Reads(shapes=True), "its layers' shapes"), (Reads(frozenset({"main", "exit1"})), "exit1"),
    ],
)  # fmt: skip
def test_it_shows_nothing_else(reads: Reads, what: str) -> None:
    with pytest.raises(MismatchError, match=f"answers and shows nothing else, and an objective reads {what}: take an objective of responses"):
        BlackBox(Counting()).prepare(reads, default_task())


@pytest.mark.parametrize(
    "objective", [{"kind": "feature.fitnet"}, {"kind": "feature.fitnet", "layers": {"layer1": "layer1"}}, {"kind": "attention.gradient_at"}]
)
def test_an_objective_of_layers_is_refused_before_step_one(objective: dict[str, Any]) -> None:
    recipe = tree(source=FOREST)
    recipe["stages"]["student"]["objectives"] = [objective]
    with pytest.raises(MismatchError, match="a black box answers and shows nothing else"):
        check(recipe)


def test_what_is_kept_is_asked_once_in_this_process() -> None:
    call = Counting()
    teacher = ready(BlackBox(call, keep="memory"))
    first = teacher(batch(1.0, -1.0, 1.0)).main.logits
    assert call.asked == 2
    again = teacher(batch(-1.0, 1.0, 3.0)).main.logits
    assert call.asked == 3
    assert torch.equal(again[:2], first[[1, 0]])
    plain = ready(BlackBox(call))
    for _ in range(2):
        plain(batch(1.0))
    assert call.asked == 5


def test_a_folder_is_asked_once_over_runs_and_knows_its_source(tmp_path: Path) -> None:
    folder: Any = build("teachers", "blackbox", {"source": FOREST, "keep": str(tmp_path)})._keep
    first = Counting()
    told = ready(BlackBox(first, keep=folder, version="one"))(batch(1.0, 2.0)).main.logits
    second = Counting()
    assert torch.equal(ready(BlackBox(second, keep=folder, version="one"))(batch(2.0, 1.0)).main.logits, told[[1, 0]])
    assert second.asked == 0
    with pytest.raises(MismatchError, match="version: 'one' there, 'two' here"):
        ready(BlackBox(second, keep=folder, version="two"))
    with pytest.raises(RecipeError, match="a function of one's own has no name to tell: give version="):
        BlackBox(second, keep=folder)


def test_what_was_answered_before_an_error_is_kept(tmp_path: Path) -> None:
    class Failing(Counting):
        def __call__(self, inputs: np.ndarray) -> np.ndarray:
            return super().__call__(inputs) if self.asked < 2 else np.full((len(inputs), 3), np.nan)

    folder: Any = build("teachers", "blackbox", {"source": FOREST, "keep": str(tmp_path)})._keep
    teacher = ready(BlackBox(Failing(), keep=folder, version="1"))
    teacher(batch(1.0, 2.0))
    with pytest.raises(DataError, match="answer to example 2 holds NaN"):
        teacher(batch(1.0, 2.0, 3.0))
    after = Counting()
    ready(BlackBox(after, keep=folder, version="1"))(batch(1.0, 2.0, 3.0))
    assert after.asked == 1


def test_a_forest_is_fitted_to_the_training_split_and_nothing_else() -> None:
    task = digits()
    train = next(task.loader("train", batch_size=96, whole=True).batches(0))
    forest = RandomForestClassifier(n_estimators=5, random_state=4).fit(train["input"].flatten(1).numpy(), train["label"].numpy())
    teacher = ready(build("teachers", "blackbox", {"source": {**FOREST, "seed": 4}, "floor": 1e-7}), task)
    held = next(task.loader("test", batch_size=50).batches(0))
    expected = np.zeros((50, 10))
    expected[:, forest.classes_] = forest.predict_proba(held["input"].flatten(1).numpy())
    np.testing.assert_allclose(teacher(held).main.logits.softmax(1).numpy(), expected, atol=1e-5)


def test_a_forest_may_be_fitted_to_other_data_than_it_is_asked_about() -> None:
    other = {"kind": "image", "data": "digits", "subset": 60}
    fewer = next(digits(subset=60).loader("train", batch_size=60, whole=True).batches(0))
    forest = RandomForestClassifier(n_estimators=5, random_state=0).fit(fewer["input"].flatten(1).numpy(), fewer["label"].numpy())
    held = next(digits().loader("train", batch_size=50).batches(0))
    teacher = ready(build("teachers", "blackbox", {"source": {**FOREST, "task": other}}), digits())
    assert teacher(held).main.logits.argmax(1).tolist() == forest.predict(held["input"].flatten(1).numpy()).tolist()
    with pytest.raises(MismatchError, match=r"fitted to inputs of \[1, 8, 8\] in 10 classes, and asked about \[2\] in 3"):
        three = Classify({"train": [{"input": torch.ones(3, 2), "label": torch.arange(3)}]}, classes=3)
        ready(build("teachers", "blackbox", {"source": {**FOREST, "task": other}}), three)


def test_it_is_fitted_once_however_often_it_is_prepared() -> None:
    teacher = ready(build("teachers", "blackbox", {"source": FOREST}), digits())
    voice = teacher._voice
    assert ready(teacher, digits())._voice is voice


def onnx_file(path: Path, model: torch.nn.Linear) -> Path:
    """Write a linear model as an ONNX file that gives logits and probabilities."""
    onnx = pytest.importorskip("onnx")
    made, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [made.make_node("Flatten", ["x"], ["flat"]), made.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)]
    nodes.append(made.make_node("Softmax", ["logits"], ["probabilities"]))
    weights = [onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in (("w", model.weight), ("b", model.bias))]
    outputs = [made.make_tensor_value_info(name, kind, ["N", 10]) for name in ("logits", "probabilities")]
    graph = made.make_graph(nodes, "linear", [made.make_tensor_value_info("x", kind, ["N", 1, 8, 8])], outputs, weights)
    onnx.save(made.make_model(graph, opset_imports=[made.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_onnx_file_answers_as_its_model(tmp_path: Path) -> None:
    model, task = torch.nn.Linear(64, 10), digits()
    path = str(onnx_file(tmp_path / "model.onnx", model))
    held = next(task.loader("test", batch_size=20).batches(0))
    expected = model(held["input"].flatten(1)).detach()

    def asked(answers: str, **source: Any) -> torch.Tensor:
        made = build("teachers", "blackbox", {"source": {"kind": "onnx", "path": path, **source}, "answers": answers})
        return ready(made, task)(held).main.logits

    torch.testing.assert_close(asked("logits"), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(asked("probabilities", output="probabilities").softmax(1), expected.softmax(1), atol=1e-4, rtol=0)
    with pytest.raises(DataError, match=r"example 1 .*is it log_probabilities or logits"):
        asked("probabilities")
    frozen = as_teacher(Graph(Path(path)))
    frozen.prepare(Reads(), task)
    assert torch.equal(frozen(held).main.logits, asked("logits"))
    with pytest.raises(MismatchError, match="has no output 'probabilites'; did you mean 'probabilities'"):
        asked("probabilities", output="probabilites")
    with pytest.raises(MismatchError, match=r"takes inputs \[N, 1, 8, 8\], and \[20, 64\] was given"):
        asked("logits", flat=True)
    with pytest.raises(ArtifactError, match=r"there is no ONNX file .*: look at source\.path"):
        asked("logits", path=str(tmp_path / "no.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"broken\.onnx is no valid ONNX file"):
        asked("logits", path=str(tmp_path / "broken.onnx"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module whose function `say` has this body, and give the name of that."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"black_box_{tmp_path.name}"

    def write(body: str) -> str:
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\ndef say(x):\n    {body}\n")
        return f"python:{name}:say"

    yield write
    sys.modules.pop(name, None)


def test_it_teaches_from_a_recipe_and_its_source_is_part_of_the_stage(tmp_path: Path, mine: Callable[[str], str]) -> None:
    recipe = tree(source={"kind": "python", "call": mine("return np.full((len(x), 10), 0.1)"), "flat": True})
    run = run_recipe(recipe, out=tmp_path / "run", listener=silent)
    assert run.stages["student"]["metrics"]["epochs"] == 1
    assert run_recipe(recipe, out=tmp_path / "run", listener=silent).stages["student"]["reused"]
    mine("return np.full((len(x), 10), 0.1) ** 1")
    assert not run_recipe(recipe, out=tmp_path / "run", listener=silent).stages["student"]["reused"]


def test_where_a_file_or_the_memory_lies_changes_nothing(tmp_path: Path) -> None:
    from limbeck.pipeline.recipe import Part
    from limbeck.pipeline.resolve import full

    def options(**more: Any) -> dict[str, Any]:
        return full("teachers", Part(kind="blackbox", **more))

    (tmp_path / "a.onnx").write_bytes(b"1")
    (tmp_path / "b.onnx").write_bytes(b"1")
    (tmp_path / "c.onnx").write_bytes(b"2")
    one, other, third = (options(source={"kind": "onnx", "path": str(tmp_path / f"{name}.onnx")}) for name in "abc")
    assert one == other != third
    assert options(source=FOREST, keep="a") == options(source=FOREST, keep="b")
    more, less = (options(source={**FOREST, "task": {"kind": "image", "data": "digits", "subset": count}}) for count in (90, 60))
    assert more != less != options(source=FOREST)
    served = {"kind": "http", "url": "http://host"}
    assert options(source=served) == options(source={**served, "retries": 9, "key": "KEY", "rows": 1}) != options(source={**served, "url": "http://other"})


def test_a_recipe_s_folder_resolves_against_its_file(tmp_path: Path) -> None:
    import yaml

    from limbeck.pipeline.recipe import load_recipe

    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree(source={"kind": "onnx", "path": "m.onnx"}, keep="kept")))
    teacher: Any = load_recipe(tmp_path / "r.yaml").stages["student"].teacher  # pyright: ignore[reportAttributeAccessIssue]
    assert teacher.options == {"source": {"kind": "onnx", "path": str(tmp_path / "m.onnx")}, "keep": str(tmp_path / "kept")}
    memory = load_recipe(tree(source=FOREST, keep="memory")).stages["student"].teacher  # pyright: ignore[reportAttributeAccessIssue]
    assert memory.options["keep"] == "memory"


def test_a_loop_of_one_s_own() -> None:
    student = torch.nn.Linear(2, 3)
    kd = limbeck.Offline(student, BlackBox(Counting()), [limbeck.KD(temperature=2.0)])
    loss = kd(batch(1.0, -1.0)).loss
    loss.backward()
    assert student.weight.grad is not None and loss > 0


def test_views_are_told_to_the_loader(tmp_path: Path) -> None:
    call = Counting()
    teacher = ready(BlackBox(call, keep="memory", views=2))
    task = digits(augment=[{"kind": "shift", "pixels": 2}])
    loader = task.loader("train", batch_size=32, views=teacher.views)
    for epoch in range(6):
        for one in loader.batches(epoch):
            teacher(one)
    assert call.asked <= 2 * 96


def test_it_holds_nothing_that_a_checkpoint_keeps() -> None:
    teacher = ready(BlackBox(Counting(), keep="memory"))
    teacher(batch(1.0))
    assert not teacher.state_dict() and not [*teacher.parameters()]
    assert copy.deepcopy(teacher)(batch(1.0)).main.logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a source"), ({"source": FOREST, "confidence": 0.9}, "confidence is for labels"), ({"source": FOREST, "floor": 0.0}, "floor is 0"),
        ({"source": FOREST, "views": 0}, "views is 0"), ({"source": FOREST, "classes": 1}, "classes is 1"),
        ({"source": {"kind": "python", "call": "mine.say"}}, "String should match pattern '\\^python:'"),
        ({"source": {**FOREST, "n_estimators": 3}}, "has no key 'n_estimators'"), ({"source": FOREST, "answers": "scores"}, "'answers'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("teachers", "blackbox", options)


def test_a_network_of_its_own_classes_is_refused_before_step_one(mine: Callable[[str], str]) -> None:
    with pytest.raises(DataError, match="knows 4 classes and the task has 10"):
        check(tree(source={"kind": "python", "call": mine("return np.full((len(x), 4), 0.25)")}))
