"""An ensemble as a recipe writes it: its weighing, its members' layers, and what is refused before anything is trained."""

import copy
from pathlib import Path
from typing import Any

import pytest

from limbeck.core.artifact import Artifact
from limbeck.core.errors import LimbeckError
from limbeck.core.events import silent
from limbeck.pipeline.check import check
from limbeck.pipeline.run import run_recipe

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 32}
TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 128},
    "stages": {
        "flat": {"kind": "train", "model": {"kind": "mlp", "widths": [12]}, **SHORT},
        "maps": {"kind": "train", "model": {"kind": "cnn", "width": 3}, **SHORT},
        "student": {"kind": "distill", "teacher": {"kind": "ensemble", "of": ["flat", "maps"]}, "model": {"kind": "cnn", "width": 2}, **SHORT},
    },
    "measure": {"latency": False},
}


def tree(objectives: list[dict[str, Any]] | None = None, scheme: str | None = None, **teacher: Any) -> dict[str, Any]:
    whole = copy.deepcopy(TREE)
    student = whole["stages"]["student"]
    student["teacher"] |= teacher
    student |= ({} if objectives is None else {"objectives": objectives}) | ({} if scheme is None else {"scheme": {"kind": scheme}})
    return whole


@pytest.mark.parametrize("weights", [[1, 2], "entropy", {"kind": "agreement", "temperature": 2}, {"kind": "learned", "rate": 1.0}])
def test_it_weighs_as_it_is_told(weights: Any, tmp_path: Path) -> None:
    hint = {"kind": "feature.fitnet", "layers": {"layer3": "1.layer3", "pool": "0.layer1"}}
    whole = tree([{"kind": "response.kd"}, hint], weights=weights)
    assert any("stage student: distill" in line for line in check(whole))
    done = run_recipe(whole, out=tmp_path, listener=silent)
    assert set(Artifact.open(tmp_path / "stages" / "student").metrics) > {"accuracy"} and not done.stages["student"]["reused"]
    again = run_recipe(whole, out=tmp_path, listener=silent)
    assert all(stage["reused"] for stage in again.stages.values())


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (tree([{"kind": "feature.fitnet", "layers": {"layer3": "layer3"}}]), "no single layer layer3: name a member's, 0.layer3 for the first"),
        (tree([{"kind": "feature.fitnet", "layers": {"layer3": "0.layer3"}}]), "no layer 'layer3'; did you mean 'layer1'"),
        (tree([{"kind": "feature.fitnet"}]), "are not paired by themselves: name them"),
        (tree(weights="entropies"), "'entropy' or 'agreement' or 'learned'"),
        (tree(weights=[1]), "1 weights for 2 teachers"),
        (tree(weights={"kind": "entropy", "temperature": 0}), "greater than 0"),
        (tree(classes=[[0, 1, 2], [3, 4, 5]]), "member 0 of the ensemble answers for 10 classes and `classes` names 3"),
        (tree(classes=[[*range(10)], [*range(1, 11)]]), "the student has 10 classes, the teacher 11"),
        (tree([{"kind": "adversarial.logit_discriminator"}], scheme="dense"), "plays against one opponent, and there are 2 teachers"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_step_one(whole: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError) as caught:
        check(whole)
    assert message in str(caught.value) and "\n" not in str(caught.value)
