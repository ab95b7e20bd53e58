"""Rounds of pruning become ordinary stages: surgeries, and what trains after each; with a fall, a choice at the end."""

import copy
from typing import Any

import pytest

from limbeck.core.errors import RecipeError
from limbeck.pipeline.recipe import ChooseStage, CompressStage, DistillStage, Part, TrainStage, load_recipe
from limbeck.schemes.iterative import Iterative

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 200},
    "stages": {
        "dense": {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32},
        "student": {
            "kind": "distill", "teacher": {"of": "dense", "kind": "frozen"}, "init": "dense", "epochs": 2, "batch_size": 16,
            "scheme": {"kind": "iterative", "method": {"kind": "prune.weights", "saliency": "magnitude"}, "to": 0.9, "rounds": 3},
        },
    },
    "measure": {"latency": False},
}  # fmt: skip
CHANNELS = {"kind": "iterative", "method": "prune.channels", "option": "target.macs", "share_of": "last", "to": 0.75, "rounds": 2}


def tree(scheme: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    whole = copy.deepcopy(TREE)
    whole["stages"]["student"] |= changes
    if scheme is not None:
        whole["stages"]["student"]["scheme"] = scheme if "kind" in scheme else TREE["stages"]["student"]["scheme"] | scheme
    return whole


def told(scheme: dict[str, Any]) -> list[float]:
    """What each round is told, in order."""
    made = Iterative(**{key: value for key, value in scheme.items() if key != "kind"}).expand("s", {"kind": "train", "init": "dense"}, {})
    found = []
    for stage in made.values():
        if stage["kind"] == "compress":
            value: Any = stage["method"]
            for name in scheme.get("option", "target.ratio").split("."):
                value = value[name]
            found.append(value)
    return found


def test_a_round_is_a_surgery_and_the_stage_on_what_it_left() -> None:
    recipe = load_recipe(tree())
    assert list(recipe.stages) == ["dense", "student-1-pruned", "student-1", "student-2-pruned", "student-2", "student-3-pruned", "student"]
    cuts = [stage for stage in recipe.stages.values() if isinstance(stage, CompressStage)]
    assert [cut.of for cut in cuts] == ["dense", "student-1", "student-2"]
    assert all(isinstance(cut.method, Part) and cut.method.kind == "prune.weights" and cut.method.options["saliency"] == "magnitude" for cut in cuts)
    repairs = [stage for stage in recipe.stages.values() if isinstance(stage, DistillStage)]
    assert [one.init for one in repairs] == ["student-1-pruned", "student-2-pruned", "student-3-pruned"]
    assert all(one.teacher.of == "dense" for one in repairs) and {one.scheme.kind for one in repairs} == {"offline"}
    plain = [one.model_dump(exclude={"init"}) for one in repairs]
    assert plain[0] == plain[1] == plain[2]
    assert load_recipe(recipe) == recipe


def test_shares_rise_to_the_end_and_are_what_the_method_means() -> None:
    weights = {"method": "prune.weights", "to": 0.9, "rounds": 3}
    assert told(weights) == pytest.approx([1 - 0.1 ** (1 / 3), 1 - 0.1 ** (2 / 3), 0.9], abs=1e-6)
    assert told(weights | {"shape": "linear"}) == pytest.approx([0.3, 0.6, 0.9], abs=1e-6)
    for shape in ("geometric", "linear"):
        left = 1.0
        for gone in told({**CHANNELS, "option": "target.ratio", "to": 0.9, "rounds": 3, "shape": shape}):
            left *= 1 - gone
        assert left == pytest.approx(0.1, abs=1e-5)
    assert told(weights | {"rounds": 1}) == [0.9]


def test_an_option_that_is_not_a_ratio_is_told_what_stays() -> None:
    assert told(CHANNELS) == [0.5, 0.5]
    assert told({**CHANNELS, "shape": "linear"}) == [0.625, 0.4]
    assert told({**CHANNELS, "share_of": "first"}) == [0.5, 0.25]


def test_options_beside_the_filled_one_are_kept_and_the_recipe_is_left_as_it_was() -> None:
    method = {"kind": "prune.weights", "target": {}, "layers": ["head"]}
    made = Iterative(method=method, to=0.5, rounds=1).expand("s", {"kind": "train", "init": "dense"}, {})
    assert made["s-1-pruned"]["method"] == {"kind": "prune.weights", "target": {"ratio": 0.5}, "layers": ["head"]}
    assert method["target"] == {}


def test_a_fresh_model_is_trained_before_it_is_pruned() -> None:
    recipe = load_recipe(tree(init=None, model={"kind": "mlp", "widths": [6]}))
    assert list(recipe.stages)[1:4] == ["student-0", "student-1-pruned", "student-1"]
    first, cut, repair = (recipe.stages[name] for name in ("student-0", "student-1-pruned", "student-1"))
    assert isinstance(first, TrainStage) and first.init is None and first.model is not None
    assert isinstance(cut, CompressStage) and cut.of == "student-0"
    assert isinstance(repair, TrainStage) and repair.model is None and repair.init == "student-1-pruned"


@pytest.mark.parametrize(("start", "than"), [({}, "dense"), ({"init": None, "model": {"kind": "mlp"}}, "student-0")])
def test_with_a_fall_the_last_stage_chooses_among_the_rounds(start: dict[str, Any], than: str) -> None:
    recipe = load_recipe(tree({"falls": 0.005}, **start))
    choice = recipe.stages["student"]
    assert isinstance(choice, ChooseStage)
    assert (choice.of, choice.than, choice.within, choice.by) == (["student-1", "student-2", "student-3"], than, 0.005, "weights_left")
    assert "student-3-pruned" in recipe.stages and list(recipe.stages)[-1] == "student"
    named = load_recipe(tree({"falls": 0.0, "by": "macs", "share_of": "last"})).stages["student"]
    assert isinstance(named, ChooseStage) and (named.within, named.by) == (0.0, "macs")


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"to": 0.0}, "to is 0"),
        ({"to": 1.0}, "to is 1"),
        ({"rounds": 0}, "0 rounds"),
        ({"falls": -0.1}, "falls is -0.1"),
        ({"by": "macs"}, "by: macs says which figure.*give falls"),
        ({"method": "prune.weihgts"}, r"no part 'prune.weihgts' among compress; did you mean 'prune.weights'\?"),
        ({"method": {"saliency": "obd"}}, "method has no kind"),
        ({"option": "targt.ratio"}, r"no option 'targt' for compress.prune.weights; did you mean 'target'\?"),
        ({"method": {"kind": "prune.weights", "target": {"ratio": 0.5}}}, "target.ratio of compress.prune.weights is filled for every round.*0.5"),
        ({"method": {"kind": "prune.weights", "target": 0.5}}, "is filled for every round, and the method says 0.5 there"),
        ({"method": "prune.weights", "option": "target.keep"}, "keep"),
        ({"method": {"kind": "prune.weights", "salience": "obd"}}, r"no option 'salience'.*did you mean 'saliency'"),
        ({"method": "prune.channels"}, r"compress.prune.channels: say whether.*share_of: first.*share_of: last"),
        ({"of": "dense"}, "draws from no stage"),
    ],
)
def test_what_cannot_be_meant_is_one_line(scheme: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tree(scheme))
    assert "\n" not in str(caught.value)
