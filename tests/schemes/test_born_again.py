"""Generations become ordinary stages, each taught by the one before it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.errors import RecipeError
from limbeck.core.events import silent
from limbeck.pipeline.modules import load_module
from limbeck.pipeline.recipe import DistillStage, load_recipe
from limbeck.pipeline.run import run_recipe

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 200},
    "stages": {
        "alone": {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32},
        "student": {
            "kind": "distill", "teacher": {"kind": "frozen", "of": "alone"}, "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32,
            "scheme": {"kind": "born_again", "generations": 3},
        },
    },
    "measure": {"latency": False},
}  # fmt: skip


def tree(**changes: Any) -> dict[str, Any]:
    whole = copy.deepcopy(TREE)
    whole["stages"]["student"] |= changes
    return whole


def test_each_generation_is_taught_by_the_one_before_it() -> None:
    recipe = load_recipe(tree(reseed=7))
    assert list(recipe.stages) == ["alone", "student-1", "student-2", "student"]
    generations = [stage for stage in recipe.stages.values() if isinstance(stage, DistillStage)]
    assert [one.teacher.of for one in generations] == ["alone", "student-1", "student-2"]
    assert [one.reseed for one in generations] == [1007, 2007, 3007]
    plain = [one.model_dump(exclude={"teacher", "reseed"}) for one in generations]
    assert plain[0] == plain[1] == plain[2]
    assert {one.scheme.kind for one in generations} == {"offline"}
    assert load_recipe(recipe) == recipe


def test_one_generation_is_one_stage() -> None:
    assert list(load_recipe(tree(scheme={"kind": "born_again", "generations": 1})).stages) == ["alone", "student"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": {"kind": "born_again", "generations": 0}}, "generations is 0"),
        ({"teacher": {"kind": "ensemble", "of": ["alone", "alone"]}}, "begins with one trained model"),
        ({"teacher": {"kind": "virtual"}}, "begins with one trained model"),
        ({"model": None, "init": "alone"}, "each generation begins anew"),
    ],
)
def test_what_cannot_be_meant_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tree(**changes))
    assert "\n" not in str(caught.value)


def test_a_generation_zero_that_is_not_there_is_asked_for() -> None:
    whole = copy.deepcopy(TREE)
    whole["stages"]["student"] = {"kind": "train", "model": {"kind": "mlp"}, "epochs": 1, "scheme": {"kind": "born_again"}}
    with pytest.raises(RecipeError, match="begins with a trained generation"):
        load_recipe(whole)


def test_generations_begin_from_other_weights_and_run_again_for_nothing(tmp_path: Path) -> None:
    run_recipe(tree(scheme={"kind": "born_again", "generations": 2}, optimizer={"kind": "sgd", "lr": 1e-9}), out=tmp_path, listener=silent)
    first, second = (load_module(Artifact.open(tmp_path / "stages" / name)) for name in ("student-1", "student"))
    assert not torch.allclose(first.head.weight, second.head.weight, atol=1e-3)  # pyright: ignore
    again = run_recipe(tree(scheme={"kind": "born_again", "generations": 2}, optimizer={"kind": "sgd", "lr": 1e-9}), out=tmp_path, listener=silent)
    assert all(stage["reused"] for stage in again.stages.values())
