"""The sentences: every figure in them comes from the files, and what is not there is said to be missing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import _story
from limbeck.report._run import read

PLAIN = str.maketrans("\u2212\u2013\u00d7", "--x")
Make = Callable[[dict[str, Any]], Path]


def told(out: Path) -> list[str]:
    return [re.sub(r"<[^>]+>", "", sentence).translate(PLAIN) for sentence in _story.headline(read(out))]


def test_the_headline_of_a_whole_run(content: dict[str, Any], make: Make) -> None:
    first, gain, small = told(make(content))
    assert first == (
        "The student has 12.3x fewer parameters, answers 4.1x faster (95% CI 3.9-4.3) and gives 96.9% (94.6-98.3) on 360 test images, "
        "0.6 points under its teacher (-1.9 to +0.7)."
    )
    assert gain == "Distillation gave +1.4 points against the same student alone (-0.3 to +3.1), too little to tell from chance here."
    assert small == (
        "As INT8 it takes 109 kB (3.6x smaller than the float file), answers 6.9x faster than the teacher (6.5-7.2) and gives 96.7% (94.3-98.1) "
        "on 360 test images."
    )
    assert _story.unknown(read(make(content))) == []


@pytest.mark.parametrize(
    ("difference", "low", "high", "start"),
    [
        (0.02, 0.004, 0.036, "Distillation helped: +2.0 points against the same student alone (+0.4 to +3.6)."),
        (-0.004, -0.017, 0.009, "Distillation did not help: -0.4 points against the same student alone (-1.7 to +0.9)."),
        (0.0, -0.01, 0.01, "Distillation did not help: 0.0 points against the same student alone (-1.0 to +1.0)."),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_what_distillation_added_is_said_plainly(
    difference: float, low: float, high: float, start: str, turned: bool, content: dict[str, Any], make: Make
) -> None:
    pair = {"a": "student", "b": "alone", "a_only": 5, "b_only": 5, "p": 0.5, "difference": difference, "low": low, "high": high}
    if turned:
        pair |= {"a": "alone", "b": "student", "difference": -difference, "low": -high, "high": -low}
    content["fidelity.json"]["pairs"][1] = pair
    assert told(make(content))[1] == start


def test_a_slower_and_larger_student_is_said_to_be_so(content: dict[str, Any], make: Make) -> None:
    content["measurement.json"]["ratios"][0] |= {"ratio": 0.8, "low": 0.5, "high": 0.9}
    content["run.json"]["stages"]["student"]["metrics"]["parameters"] = 2 * 1_184_010
    content["fidelity.json"]["pairs"][0] |= {"difference": 0.011, "low": 0.002, "high": 0.02}
    assert told(make(content))[0].startswith("The student has 2.0x more parameters, answers 1.25x slower (95% CI 1.11-2.00) and gives")
    assert told(make(content))[0].endswith("1.1 points above its teacher (+0.2 to +2.0).")


def test_a_ratio_told_the_other_way_round_is_turned(content: dict[str, Any], make: Make) -> None:
    content["measurement.json"]["ratios"][0] = {"a": "shipped", "b": "teacher", "quantity": "latency_ms_p50", "ratio": 0.25, "low": 0.2, "high": 0.5, "n": 9}
    assert "answers 4.0x faster (95% CI 2.0-5.0)" in told(make(content))[0]


def test_without_fidelity_the_difference_has_no_interval(content: dict[str, Any], make: Make) -> None:
    content["fidelity.json"]["pairs"] = []
    assert told(make(content))[0].endswith("0.6 points under its teacher (no interval).")
    content["run.json"]["stages"]["teacher"]["metrics"]["examples"] = 1000
    assert "points" not in told(make(content))[0], "accuracies on different examples are not subtracted"
    assert told(make(content))[0].startswith("The student has 12.3x fewer parameters than its teacher")


def drop(content: dict[str, Any], *roles: str) -> None:
    for role in roles:
        content["run.json"]["roles"][role] = None
        del content["run.json"]["stages"][role]


def test_missing_pieces_are_told_and_never_invented(content: dict[str, Any], make: Make) -> None:
    drop(content, "teacher", "int8", "alone")
    del content["measurement.json"]
    out = make(content)
    assert told(out) == ["The student gives 96.9% (94.6-98.3) on 360 test images."]
    assert _story.unknown(read(out)) == [
        "There is no teacher in this run, so what was lost against one is not known.",
        "The same student was not trained alone, so what distillation added is not known.",
        "Speed was not measured.",
        "No INT8 file was made.",
    ]


def test_without_a_test_split_the_validation_split_is_named(content: dict[str, Any], make: Make) -> None:
    del content["fidelity.json"]
    for stage in content["run.json"]["stages"].values():
        stage["metrics"] = {name: value for name, value in stage["metrics"].items() if name in ("parameters", "validation_accuracy")}
    out = make(content)
    assert told(out)[0].endswith("was not tested; on the validation split, which chose its epoch, it gives 98.6%.")
    assert "No test split was evaluated." in _story.unknown(read(out))
    assert all("points" not in sentence for sentence in told(out))


def test_a_run_of_a_teacher_alone(content: dict[str, Any], make: Make) -> None:
    drop(content, "alone", "student", "shipped", "int8")
    assert told(make(content)) == ["There is no student in this run.", "Teacher gives 97.5% (95.3-98.7) on 360 test images."]


def test_a_student_trained_alone_is_called_so(content: dict[str, Any], make: Make) -> None:
    drop(content, "teacher", "student", "shipped", "int8")
    out = make(content)
    assert told(out) == ["The student trained alone gives 95.6% (92.9-97.2) on 360 test images."]
    assert "Nothing was distilled." in _story.unknown(read(out))


@pytest.mark.parametrize("recipe", ["task: {kind: table}", "", "- a\n- b", "task: [", "task: {kind: [1]}", "a: !!python/object/apply:os.abort []"])
def test_the_noun_comes_from_the_task_and_no_recipe_breaks_it(recipe: str, content: dict[str, Any], make: Make) -> None:
    content["run.json"]["recipe_yaml"] = recipe
    assert f"on 360 test {'rows' if 'table' in recipe else 'examples'}" in told(make(content))[0]


def test_the_measurement_goes_before_what_the_stage_said(content: dict[str, Any], make: Make) -> None:
    content["run.json"]["stages"]["int8"]["metrics"]["file_bytes"] = 1
    content["measurement.json"]["models"]["int8"]["file_bytes"] = 200_000
    assert "As INT8 it takes 200 kB" in told(make(content))[2]


def test_verdicts_name_both_sides_and_do_not_claim_too_much(content: dict[str, Any], make: Make) -> None:
    content["fidelity.json"]["pairs"] += [
        {"a": "shipped", "b": "student", "a_only": 0, "b_only": 0, "p": 1.0, "difference": 0.0, "low": 0.0, "high": 0.0},
        {"a": "student", "b": "alone", "a_only": 30, "b_only": 1, "p": 1e-7, "difference": 0.08, "low": 0.05, "high": 0.11},
    ]
    run = read(make(content))
    assert run.fidelity is not None
    said = [re.sub(r"<[^>]+>", "", _story.verdict(run, pair)).translate(PLAIN) for pair in run.fidelity.pairs]
    assert said[0] == (
        "Distilled against Teacher: only Distilled is right on 4 images, only Teacher on 6; -0.6 points (-1.9 to +0.7); p = 0.75: no difference is shown."
    )
    assert said[3] == "Exported against Distilled: right and wrong on the same images."
    assert said[4].endswith("+8.0 points (+5.0 to +11.0); p &lt; 0.001: more than chance explains.")
