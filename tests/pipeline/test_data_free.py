"""A run without data: only the teacher's artifact and the test files are on disk, and the test files are opened to measure alone."""

import builtins
import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.core.artifact import Artifact
from limbeck.core.errors import DataError
from limbeck.core.events import silent
from limbeck.pipeline.check import check
from limbeck.pipeline.recipe import load_recipe
from limbeck.pipeline.run import run_recipe

SCHEMES: dict[str, dict[str, Any]] = {
    "dafl": {"generator": {"latent": 4, "width": 4}, "sample": 20},
    "dfad": {"generator": {"latent": 4, "width": 4}, "sample": 20, "student_steps": 2},
    "zskt": {"generator": {"latent": 4, "width": 4}, "sample": 20, "student_steps": 2},
    "inversion": {"rounds": 3, "student_steps": 2, "bank": 32, "sample": 20},
}
CNN = {"kind": "cnn", "width": 4}
LAST = {"epochs": 1, "batch_size": 8, "optimizer": {"kind": "adam", "lr": 0.01}}


def lay(folder: Path, split: str, count: int) -> None:
    made = np.random.default_rng(count)
    labels = (np.arange(count) % 3).astype(np.uint8)
    images = (made.integers(0, 40, (count, 8, 8)) + 90 * labels[:, None, None]).astype(np.uint8)
    for stem, values in ((f"{split}-images-idx3-ubyte.gz", images), (f"{split}-labels-idx1-ubyte.gz", labels)):
        header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
        (folder / stem).write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A teacher's artifact, made by another run from training files that are gone since; the test files are there."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    lay(folder, "train", 60)
    lay(folder, "t10k", 30)
    seen = {"kind": "image", "data": "mnist", "root": str(tmp_path / "data"), "validation": 0.0, "normalize": False}
    run_recipe(
        {"name": "teacher", "task": seen, "stages": {"teacher": {"kind": "train", "model": CNN, **LAST}}, "measure": {"latency": False}},
        out=tmp_path / "elsewhere", listener=silent,
    )  # fmt: skip
    for file in folder.glob("train-*"):
        file.unlink()
    return tmp_path


def recipe(world: Path, **stages: Any) -> dict[str, Any]:
    test = {"data": "mnist", "root": str(world / "data")}
    return {
        "name": "unseen",
        "task": {"kind": "unseen", "in_shape": [1, 8, 8], "classes": 10, "examples": 16, "test": test},
        "stages": {"teacher": {"kind": "given", "path": str(world / "elsewhere" / "stages" / "teacher")}, **stages},
        "measure": {"latency": False},
    }


def taught(**options: Any) -> dict[str, Any]:
    return {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": CNN, "objectives": [{"kind": "response.kd"}], **LAST, **options}


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_student_is_taught_where_no_training_file_exists(kind: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for place, name in ((builtins, "open"), (io, "open"), (gzip, "open")):
        real = getattr(place, name)

        def spy(file: Any, *args: Any, real: Any = real, **options: Any) -> Any:
            opened.append(str(file))
            return real(file, *args, **options)

        monkeypatch.setattr(place, name, spy)
    out = world / "run"
    done = run_recipe(recipe(world, student=taught(scheme={"kind": kind, **SCHEMES[kind]})), out=out, listener=silent)
    monkeypatch.undo()
    named = {Path(file).name for file in opened if str(world / "data") in file}
    assert named and all(name.startswith("t10k-") for name in named), named
    student = Artifact.open(out / "stages" / "student")
    assert done.stages["student"]["metrics"]["examples"] == 30
    assert (student.path / "synthetic.safetensors").is_file()
    assert not any(name.startswith("validation") for name in student.metrics), "nothing but the last step is reported"


def test_what_was_made_teaches_another_student_and_noise_is_the_floor(world: Path) -> None:
    tree = recipe(
        world,
        alone=taught(transfer={"kind": "synthesised"}),
        student=taught(scheme={"kind": "dafl", **SCHEMES["dafl"]}),
        second=taught(transfer={"kind": "synthesised", "of": "student"}),
    )
    assert any("put together when student has run" in line for line in check(tree))
    done = run_recipe(tree, out=world / "run", listener=silent)
    assert {name: stage["metrics"]["examples"] for name, stage in done.stages.items()} == dict.fromkeys(tree["stages"], 30)
    again = run_recipe(tree, out=world / "run", listener=silent)
    assert all(stage["reused"] for stage in again.stages.values())


def test_a_teacher_that_is_taught_in_the_same_recipe_needs_its_own_task(world: Path) -> None:
    seen = {"kind": "image", "data": "mnist", "root": str(world / "data"), "validation": 0.0, "normalize": False}
    tree = recipe(world) | {"stages": {"teacher": {"kind": "train", "task": seen, "model": CNN, **LAST}}}
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is missing"):
        check(tree)


@pytest.mark.parametrize("name", ["dafl-mnist", "dfad-mnist", "inversion-mnist", "noise-mnist"])
def test_the_built_in_recipes_give_student_and_floor_the_same_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_DATA", "/nowhere")
    stages = load_recipe(name).stages
    alone, student = (stages[one].model_dump() for one in ("alone", "student"))
    assert all(alone[key] == student[key] for key in ("model", "optimizer", "batch_size", "schedule"))
    assert alone["transfer"]["kind"] == "synthesised" and alone["transfer"]["of"] is None
    assert alone["epochs"] == student["epochs"] * student["scheme"].get("student_steps", 1)
    assert stages["teacher"].model_dump()["task"]["kind"] == "image", "the teacher alone is trained on data"
