"""Assistants between a student and its teacher: their sizes, the stages that they come to, and what cannot stand between."""

from typing import Any

import pytest

from limbeck.core.errors import RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.pipeline.recipe import DistillStage, load_recipe
from limbeck.pipeline.run import run_recipe
from limbeck.schemes._sizes import below, between, chosen, parameters_of

STUDENT: dict[str, Any] = {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "cnn", "width": 4}, "init": None, "epochs": 3}
EARLIER: dict[str, Any] = {"teacher": {"kind": "train", "model": {"kind": "cnn", "width": 48}, "epochs": 9}}


def expand(stage: dict[str, Any] | None = None, earlier: dict[str, Any] | None = None, **options: Any) -> dict[str, dict[str, Any]]:
    course = build("schemes", "assistants", options)
    return course.expand("student", {**STUDENT, **(stage or {})}, EARLIER if earlier is None else earlier)


def sizes(made: dict[str, dict[str, Any]]) -> list[int]:
    return [stage["model"]["width"] for stage in made.values()]


def test_a_chain_hands_on_from_the_teacher_to_the_student() -> None:
    made = expand(count=3, epochs=7)
    assert [*made] == ["student-1", "student-2", "student-3", "student"]
    assert [stage["teacher"]["of"] for stage in made.values()] == ["teacher", "student-1", "student-2", "student-3"]
    assert [stage["epochs"] for stage in made.values()] == [7, 7, 7, 3]
    assert all("scheme" not in stage and stage["teacher"]["kind"] == "frozen" for stage in made.values())
    assert sizes(made) == [26, 14, 7, 4]  # 48 (4/48)^(k/4): 25.8, 13.9, 7.4
    assert expand()["student-1"]["epochs"] == 3


def test_with_dense_guidance_all_larger_models_teach() -> None:
    made = expand(count=2, guides={"kind": "all", "drop": 0.25})
    assert [stage["teacher"] for stage in made.values()] == [
        {"kind": "frozen", "of": "teacher"},
        {"kind": "ensemble", "of": ["teacher", "student-1"]},
        {"kind": "ensemble", "of": ["teacher", "student-1", "student-2"]},
    ]
    assert [stage.get("scheme") for stage in made.values()] == [None, *[{"kind": "dense", "drop": 0.25}] * 2]
    assert expand(guides="all")["student"]["scheme"] == {"kind": "dense", "drop": 0.0}


def test_other_teachers_of_one_model_are_handed_on_with_their_options() -> None:
    made = expand({"teacher": {"kind": "cached", "of": "teacher", "views": 4}})
    assert [stage["teacher"] for stage in made.values()] == [{"kind": "cached", "of": one, "views": 4} for one in ("teacher", "student-1")]


def test_sizes_by_parameters_are_evenly_spaced_in_their_logarithm() -> None:
    shape, kind = (1, 28, 28), {"kind": "cnn"}
    counts = {width: parameters_of({**kind, "width": width}, shape, 10) for width in range(4, 49)}
    assert (counts[4], counts[8]) == (1050, 3818)
    found = sizes(expand(count=2, by="parameters", in_shape=list(shape)))[:-1]
    for index, size in enumerate(found, 1):
        wish = counts[48] * (counts[4] / counts[48]) ** (index / 3)
        assert size == min(counts, key=lambda width: abs(counts[width] / wish - 1) if counts[width] > wish else abs(wish / counts[width] - 1))


@pytest.mark.parametrize(
    ("model", "teacher", "option", "expected"),
    [
        ({"kind": "resnet", "depth": 8}, {"kind": "resnet", "depth": 56}, "depth", [32, 14]),  # 29.3 and 15.3, of 6n + 2
        ({"kind": "wrn", "depth": 10}, {"kind": "wrn"}, "depth", None),
        ({"kind": "mlp", "widths": [30, 10]}, {"kind": "mlp", "widths": [1200, 640]}, "widths", [[351, 160], [103, 40]]),
        ({"kind": "cnn"}, {"kind": "cnn", "width": 128}, "width", [81, 51]),  # 32 by default
    ],
)
def test_sizes_are_such_as_the_model_can_be_built_with(model: dict[str, Any], teacher: dict[str, Any], option: str, expected: list[Any] | None) -> None:
    earlier = {"teacher": {"kind": "train", "model": teacher}}
    if expected is None:  # nothing between a wrn of depth 10 and one of 16
        with pytest.raises(RecipeError, match="between a wrn of depth 10 and one of 16 there are no 2 sizes"):
            expand({"model": model}, earlier, option=option, count=2)
        return
    made = expand({"model": model}, earlier, option=option, count=2)
    assert [made[f"student-{index}"]["model"][option] for index in (1, 2)] == expected


def test_every_number_between_is_found_and_nothing_else() -> None:
    assert between(4, 8) == [5, 6, 7] and between(4, 5) == [] and between(1, 3) == [2]
    for small, large in ((3, 200), (7, 61)):
        assert between(small, large) == [*range(small + 1, large)]
    assert all(below([8, 8], size) and below(size, [10, 16]) for size in between([8, 8], [10, 16]))
    assert chosen({"kind": "cnn", "width": 4}, "width", 8, 3, by="size", in_shape=(3, 32, 32), classes=10) == [7, 6, 5]


def test_the_teacher_s_size_is_found_through_init_and_unknown_of_a_given_one() -> None:
    earlier = {**EARLIER, "tuned": {"kind": "train", "model": None, "init": "teacher"}}
    tuned = {"teacher": {"kind": "frozen", "of": "tuned"}}
    assert sizes(expand(tuned, earlier)) == [14, 4]
    given = {"teacher": {"kind": "given", "path": "somewhere"}}
    with pytest.raises(RecipeError, match="the teacher is no model that is trained here: give their sizes"):
        expand(None, given)
    assert sizes(expand(None, given, sizes=[16, 8])) == [16, 8, 4]
    other = {"teacher": {"kind": "train", "model": {"kind": "resnet", "depth": 20}}}
    with pytest.raises(RecipeError, match="the teacher is a resnet and the student a cnn: give their sizes"):
        expand(None, other)
    assert sizes(expand(None, other, sizes=[16])) == [16, 4]


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ({}, {"sizes": [64]}, "an assistant of width 64 is not smaller than its teacher, of 48"),
        ({}, {"sizes": [48]}, "an assistant of width 48 is not smaller than its teacher, of 48"),
        ({}, {"sizes": [8, 16]}, "an assistant of width 16 is not smaller than its teacher, of 8: list sizes from large to small"),
        ({}, {"sizes": [8, 8]}, "an assistant of width 8 is not smaller than its teacher, of 8"),
        ({}, {"sizes": [16, 4]}, "an assistant of width 4 is not larger than the student, of 4"),
        ({}, {"sizes": [16, 3]}, "an assistant of width 3 is not larger than the student, of 4"),
        ({}, {"sizes": []}, "there are to be no assistants"),
        ({}, {"count": 0}, "there are to be no assistants"),
        ({}, {"epochs": 0}, "for 0 epochs: give 1 or more"),
        ({}, {"option": "widht"}, "the option 'widht', and the student's model cnn has none; did you mean 'width'"),
        ({}, {"guides": {"kind": "all", "drop": 1.0}}, "less than 1"),
        ({}, {"guides": "some"}, "'last' or 'all'"),
        ({"model": {"kind": "cnn", "width": 48}}, {}, "the student's width is 48 and the teacher's 48"),
        ({"model": {"kind": "cnn", "width": 47}}, {}, "between a cnn of width 47 and one of 48 there are no 1 sizes"),
        ({"model": {"kind": "cnn", "width": 45}}, {"count": 3}, "take a lower count, or sizes of your own"),
        ({"model": {"kind": "cnn", "width": 0}}, {}, "must be a whole number above zero"),
        ({"model": {"kind": "cnn", "width": True}}, {}, "must be a whole number above zero"),
        ({"model": None, "init": "teacher"}, {}, "goes on with 'teacher': give it a `model`"),
        ({"kind": "train"}, {}, "stage 'student' has no teacher: kind: distill"),
        ({"teacher": {"kind": "ensemble", "of": ["a", "b"]}}, {}, "stage 'student' has 2 teachers: of: one stage"),
        ({"teacher": {"kind": "virtual", "of": None}}, {}, "stage 'student' has 0 teachers"),
        ({"teacher": {"kind": "cached", "of": "teacher"}}, {"guides": "all"}, r"take \{kind: frozen, of: teacher\} without options"),
        ({"teacher": {"kind": "frozen", "of": "teacher", "input": "paired"}}, {"guides": "all"}, "without options"),
        ({}, {"in_shape": [7]}, r"building the student's model, and that fails: CNN reads images.*in_shape says for which examples"),
    ],
)  # fmt: skip
def test_what_cannot_stand_between_is_refused(stage: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        expand(stage, **options)
    assert "\n" not in str(caught.value)


def test_an_assistant_with_more_parameters_than_another_kind_of_teacher_is_refused() -> None:
    other = {"teacher": {"kind": "train", "model": {"kind": "resnet", "depth": 8}}}
    with pytest.raises(RecipeError, match=r"an assistant of width 200 has .* parameters, more than its teacher's"):
        expand(None, other, sizes=[200])


def test_sizing_leaves_the_random_state_as_it_was() -> None:
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    expand(count=2)
    assert torch.equal(torch.get_rng_state(), before)


RECIPE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 128},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "cnn", "width": 12}, "epochs": 1, "batch_size": 32},
        "student": {
            "kind": "distill",
            "scheme": {"kind": "assistants", "count": 2, "guides": {"kind": "all", "drop": 0.5}, "in_shape": [1, 8, 8]},
            "teacher": {"kind": "frozen", "of": "teacher"},
            "model": {"kind": "cnn", "width": 3},
            "epochs": 1,
            "batch_size": 32,
        },
    },
    "measure": {"latency": False},
}


def test_a_recipe_runs_through_its_assistants(tmp_path: Any) -> None:
    recipe = load_recipe(RECIPE)
    assert [*recipe.stages] == ["teacher", "student-1", "student-2", "student"]
    last = recipe.stages["student"]
    assert isinstance(last, DistillStage) and last.scheme.kind == "dense" and last.teacher.stages == ["teacher", "student-1", "student-2"]
    done = run_recipe(RECIPE, out=tmp_path, listener=silent)
    assert [stage["metrics"]["parameters"] for stage in done.stages.values()] == sorted(
        (s["metrics"]["parameters"] for s in done.stages.values()), reverse=True
    )
    assert all(stage["reused"] for stage in run_recipe(RECIPE, out=tmp_path, listener=silent).stages.values())
