"""A table whose training rows are gone: what its artifact keeps is enough to draw rows, to teach on them, and to measure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.core.artifact import Artifact, seal
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.pipeline.run import run_recipe


def lines(count: int, seed: int) -> list[str]:
    made = np.random.default_rng(seed)
    rows = zip(made.normal(size=(count, 2)), made.integers(0, 3, count), strict=True)
    return ["a,b,c,answer", *(f"{a:.4f},{b:.4f},{'rgb'[c]},{('no', 'yes')[int(a + b > 0)]}" for (a, b), c in rows)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table with a test file, and beside it what an artifact keeps of it, in teacher/."""
    (tmp_path / "data").mkdir()
    for name, count in (("train", 200), ("test", 40)):
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join(lines(count, count)))
    facts = table(tmp_path).facts()
    spec = {"in_shape": facts.in_shape, "classes": facts.classes, "class_names": facts.class_names, "preprocess": facts.preprocess}
    keep(tmp_path / "teacher", spec)
    return tmp_path


def table(folder: Path) -> Task:
    return build("tasks", "table", {"data": "csv", "root": str(folder / "data")})


def keep(folder: Path, spec: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x")
    seal(folder, name="t", kind="graph", model="model.onnx", stage_hash="h", spec=spec, metrics={})


def unseen(folder: Path, **options: Any) -> Task:
    return build("tasks", "unseen_table", {"root": str(folder / "teacher"), "test": {"root": str(folder / "data" / "test.csv")}, **options})


def test_its_test_rows_are_those_of_the_table(folder: Path) -> None:
    known = next(table(folder).loader("test", batch_size=100).batches(0))
    (folder / "data" / "train.csv").unlink()
    found = next(unseen(folder).loader("test", batch_size=100).batches(0))
    assert all(torch.equal(found[name], known[name]) for name in ("input", "label", "id"))


def test_its_training_rows_are_drawn_and_have_no_label(folder: Path) -> None:
    (folder / "data" / "train.csv").unlink()
    task = unseen(folder, examples=64, test=None)
    assert task.splits() == ("train",) and not task.facts().labelled and task.facts().examples == 64
    batch = next(task.loader("train", batch_size=32).batches(0))
    assert set(batch) == {"input", "id"} and (batch["input"][:, 2:].sum(1) == 1).all()
    with pytest.raises(DataError, match="has no test split"):
        task.loader("test", batch_size=8)


def test_a_student_is_taught_where_the_training_file_does_not_exist(folder: Path) -> None:
    stage = {"epochs": 20, "batch_size": 16, "optimizer": {"kind": "adam", "lr": 0.01}, "model": {"kind": "mlp", "widths": [16]}}
    first = {"name": "first", "task": {"kind": "table", "data": "csv", "root": str(folder / "data")}, "measure": {"latency": False}}
    run_recipe({**first, "stages": {"teacher": {"kind": "train", **stage}}}, out=folder / "one", listener=silent)
    (folder / "data" / "train.csv").unlink()
    teacher = folder / "one" / "stages" / "teacher"
    second = {
        "name": "second",
        "task": {"kind": "unseen_table", "root": str(teacher), "examples": 400, "test": {"root": str(folder / "data" / "test.csv")}},
        "measure": {"latency": False},
        "stages": {
            "teacher": {"kind": "given", "path": str(teacher)},
            "student": {
                "kind": "distill", **stage, "epochs": 5, "teacher": {"kind": "frozen", "of": "teacher"}, "objectives": [{"kind": "response.kd"}],
                "transfer": {"kind": "marginals", "of": "teacher", "rows": 400},
            },
        },
    }  # fmt: skip
    done = run_recipe(second, out=folder / "two", listener=silent)
    assert done.stages["student"]["metrics"]["accuracy"] > 0.8
    kept = Artifact.open(folder / "two" / "stages" / "student").spec["preprocess"]
    assert kept == json.loads(json.dumps(Artifact.open(teacher).spec["preprocess"]))


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="examples is 0"):
        unseen(folder, examples=0)
    with pytest.raises(ArtifactError, match="missing"):
        build("tasks", "unseen_table", {"root": str(folder / "nowhere")}).facts()
    keep(folder / "images", {"preprocess": {"kind": "image"}})
    with pytest.raises(MismatchError, match="was not trained on classes of a table with columns: its preprocessing is image"):
        build("tasks", "unseen_table", {"root": str(folder / "images")}).facts()
    test = folder / "data" / "test.csv"
    for text, message in (
        ("a,b,c,kind\n1,2,r,no\n", "no column 'answer'"),
        ("a,b,c,answer\n1,2,r,perhaps\n", "has the class 'perhaps', and the artifact knows no, yes"),
    ):
        test.write_text(text)
        with pytest.raises(DataError, match=message):
            unseen(folder).loader("test", batch_size=4)


def test_its_fingerprint_is_of_what_it_reads(folder: Path) -> None:
    one = unseen(folder).fingerprint()
    assert one == unseen(folder).fingerprint() != unseen(folder, examples=5).fingerprint()
    (folder / "data" / "test.csv").write_text("\n".join(lines(41, 1)))
    assert unseen(folder).fingerprint() != one
