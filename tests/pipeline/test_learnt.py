"""What objectives learn is taken over by a later stage, and what they graft onto a student ships with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError
from limbeck.core.events import Note, silent
from limbeck.core.lookup import build
from limbeck.pipeline.learnt import take_over
from limbeck.pipeline.modules import Graph, load
from limbeck.pipeline.recipe import ObjectiveSpec
from limbeck.pipeline.run import run_recipe
from limbeck.report.run import run

TEACHER = {"kind": "train", "model": {"kind": "cnn", "width": 6}, "epochs": 1, "batch_size": 64}
STUDENT = {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "cnn", "width": 3}, "epochs": 1, "batch_size": 64}


def recipe(**stages: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "small",
        "task": {"kind": "image", "data": "digits", "subset": 300},
        "stages": {"teacher": TEACHER, **stages},
        "measure": {"latency": False},
    }


def state(out: Path, stage: str) -> dict[str, torch.Tensor]:
    (file,) = (out / "stages" / stage / "checkpoint").glob("*/state.safetensors")
    return load_file(file)


def test_a_paraphraser_that_one_stage_trained_is_kept_by_the_next(tmp_path: Path) -> None:
    first = STUDENT | {"objectives": [{"kind": "factor_transfer", "learns": "paraphraser"}]}
    second = STUDENT | {"objectives": [{"kind": "factor_transfer", "learns": "translator", "init": "first"}, {"kind": "supervised"}]}
    heard: list[Any] = []
    run_recipe(recipe(first=first, second=second), out=tmp_path, listener=heard.append)
    before, after = state(tmp_path, "first"), state(tmp_path, "second")
    kept = [name for name in before if ".paraphrasers." in name]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert any(".translators." in name for name in after)
    assert sum(isinstance(event, Note) and event.text == "feature.factor_transfer begins with what stage first learnt" for event in heard) == 1


def test_another_objective_s_stage_has_nothing_to_take_over(tmp_path: Path) -> None:
    second = STUDENT | {"objectives": [{"kind": "factor_transfer", "learns": "translator", "init": "first"}]}
    with pytest.raises(MismatchError, match="takes over what stage 'first' learnt, which has 0 objectives of that kind"):
        run_recipe(recipe(first=STUDENT, second=second), out=tmp_path, listener=silent)


def test_a_scheme_that_lost_an_objective_is_found_out() -> None:
    scheme = build("schemes", "offline", {}, torch.nn.Linear(2, 2), None, [build("objectives", "supervised", {})])
    told = ObjectiveSpec(kind="supervised")
    assert take_over(scheme, [told], {}) == []
    with pytest.raises(AssertionError, match="Offline holds 1 objectives, and its stage names 2"):
        take_over(scheme, [told, told], {})


def test_a_scheme_that_brings_its_own_losses_takes_nothing_over() -> None:
    scheme = build("schemes", "chunker", {}, build("models", "recurrent", {"width": 4}, (7, 5), 5), None, [build("objectives", "supervised", {})])
    assert take_over(scheme, [ObjectiveSpec(kind="supervised")], {}) == []
    with pytest.raises(MismatchError, match="supervised takes over what stage 'first' learnt, and Chunker brings its own losses: leave `init` out"):
        take_over(scheme, [ObjectiveSpec(kind="supervised", init="first")], {})


def test_a_grafted_student_is_validated_loaded_exported_and_taught_from(tmp_path: Path) -> None:
    grafting = STUDENT | {"objectives": [{"kind": "simkd"}], "epochs": 3}
    stages = {
        "student": grafting,
        "shipped": {"kind": "export", "of": "student"},
        "next": STUDENT | {"teacher": {"kind": "frozen", "of": "student"}},
        "on": {"kind": "train", "init": "student", "epochs": 1, "batch_size": 64},
    }
    done = run(recipe(**stages), out=tmp_path)
    student = load(tmp_path / "stages" / "student")
    golden = load_file(tmp_path / "stages" / "student" / "golden.safetensors")
    with torch.no_grad():
        assert torch.allclose(student(golden["inputs"]), golden["outputs"], atol=1e-5)
        graph = load(tmp_path / "stages" / "shipped")
        assert isinstance(graph, Graph)
        assert torch.allclose(graph(golden["inputs"]), golden["outputs"], atol=1e-4)
    teacher = load(tmp_path / "stages" / "teacher").state_dict()
    ours = list(student.state_dict().values())
    assert any(torch.equal(value, teacher["head.weight"]) for value in ours), "the teacher's classifier ships"
    assert not any(value.shape == (10, 6) for value in ours), "the student's own does not"
    artifact = Artifact.open(tmp_path / "stages" / "student")
    assert artifact.metrics["parameters"] == sum(p.numel() for p in student.parameters())
    assert done.stages["student"]["metrics"]["validation_accuracy"] == pytest.approx(artifact.metrics["validation_accuracy"])
    assert load(tmp_path / "stages" / "on").state_dict().keys() == student.state_dict().keys()
