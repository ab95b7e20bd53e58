"""A course over tasks: which stages it comes to."""

from typing import Any

import pytest

from limbeck.core.errors import RecipeError
from limbeck.schemes.lifelong import Lifelong

STAGE: dict[str, Any] = {
    "kind": "distill", "model": {"kind": "mlp"}, "init": None, "task": {"augment": []}, "teacher": {"kind": "frozen", "of": None},
    "objectives": [{"kind": "response.lwf", "weight": 2.0}, {"kind": "supervised", "weight": 0.5}],
    "transfer": {"kind": "replay", "of": None, "size": 9}, "epochs": 3,
}  # fmt: skip


def test_each_stage_goes_on_with_the_one_before() -> None:
    stages = Lifelong(tasks=3).expand("s", STAGE, {})
    assert list(stages) == ["s-1", "s-2", "s"]
    assert [stage["task"] for stage in stages.values()] == [{"augment": [], "now": number} for number in range(3)]
    first, second, last = stages.values()
    assert first["kind"] == "train" and "teacher" not in first and first["model"] == {"kind": "mlp"} and first["init"] is None
    assert first["objectives"] == [{"kind": "supervised", "weight": 0.5}] and first["transfer"]["of"] is None
    for stage, before in ((second, "s-1"), (last, "s-2")):
        assert stage["kind"] == "distill" and stage["init"] == before and stage["model"] is None
        assert stage["teacher"]["of"] == before and stage["transfer"]["of"] == before and stage["epochs"] == 3
        assert stage["scheme"] == {"kind": "offline"}
    assert STAGE["transfer"]["of"] is None and "now" not in STAGE["task"]


def test_a_task_that_arrives_later_begins_with_what_is_given() -> None:
    (only,) = Lifelong(tasks=4, first=3).expand("s", {**STAGE, "model": None, "init": "old"}, {}).values()
    assert only["task"]["now"] == 3 and only["init"] == only["teacher"]["of"] == only["transfer"]["of"] == "old"


def test_a_scheme_that_remembers_draws_from_the_task_before() -> None:
    stage = {**STAGE, "kind": "train", "transfer": {"kind": "real", "of": None}, "objectives": [{"kind": "supervised"}]}
    del stage["teacher"]
    first, last = Lifelong(tasks=2, within={"kind": "der", "size": 5}).expand("s", stage, {}).values()
    assert first["scheme"] == {"kind": "der", "size": 5} and last["scheme"] == {"kind": "der", "size": 5, "of": "s-1"}
    assert last["transfer"] == {"kind": "real", "of": None}


def test_a_first_task_taught_by_nobody_learns_by_its_labels() -> None:
    first, _ = Lifelong(tasks=2).expand("s", {**STAGE, "objectives": [{"kind": "response.lwf"}]}, {}).values()
    assert first["objectives"] == [{"kind": "supervised"}]


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"tasks": 0}, {}, "first is 0 of 0 tasks"),
        ({"tasks": 2, "first": 2}, {}, "first is 2 of 2 tasks"),
        ({"tasks": 2, "first": 1}, {}, "say what has learnt those before it, init: stage"),
        ({"tasks": 2, "within": {"size": 3}}, {}, "within is the scheme of each task's stage"),
        ({"tasks": 2}, {"teacher": {"kind": "frozen", "of": "x"}}, "teacher.of is the stage of the task before"),
        ({"tasks": 2}, {"transfer": {"kind": "replay", "of": "x"}}, "transfer.of is the stage of the task before"),
        ({"tasks": 2, "within": {"kind": "icarl", "size": 5}}, {}, "has memories of 5 and 9 examples in `transfer` and `within`"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Lifelong(**options).expand("s", {**STAGE, **change}, {})
