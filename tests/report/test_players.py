"""A stage with several players: each has its row, its curve and its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck import report
from limbeck.core.errors import ArtifactError
from limbeck.report import _players, _plots, _run, _tables

Make = Callable[[dict[str, Any]], Path]


@pytest.fixture
def several(content: dict[str, Any]) -> dict[str, Any]:
    """The student has learnt beside a peer."""
    for at, row in enumerate(content["stages/student/history.json"]["epochs"]):
        row |= {"validation_student_accuracy": 0.5 + at / 100, "validation_peer1_accuracy": 0.6 + at / 100, "validation_peer10_accuracy": 0.0}
        del row["validation_accuracy"]
        row["parts"]["peer1_loss"] = 7.0 - at / 100
    metrics = content["run.json"]["stages"]["student"]["metrics"]
    content["stages/student/players/peer1/metrics.json"] = {**metrics, "accuracy": 0.875, "errors": 45, "best_epoch": 3}
    return content


def test_every_player_has_a_row_and_a_curve_of_its_own(several: dict[str, Any], make: Make) -> None:
    run = _run.read(make(several))
    assert [model.label for model in run.models][-1] == "student.peer1"
    row = next(cells for model, cells in _tables.quality(run).rows if model.stage == "student.peer1")
    assert row[0].text == "87.5%" and row[1].text == "45"
    assert [epoch.validation_accuracy for epoch in run.histories["student"]][:2] == [0.5, 0.51]
    assert [epoch.validation_accuracy for epoch in run.histories["student.peer1"]][:2] == [0.6, 0.61]
    assert [epoch.train_loss for epoch in run.histories["student.peer1"]][:2] == [7.0, 6.99]
    assert run.histories["student"][0].train_loss == several["stages/student/history.json"]["epochs"][0]["train_loss"]
    curve = next(plot for plot in _plots.curves(run) if plot.key == "validation")
    assert "Distilled: from 50% to 79%" in curve.svg and "student.peer1: from 60% to 89%" in curve.svg
    assert [row["model"].label for row in _tables.stages(run)].count("student.peer1") == 0, "a player is no stage"
    assert "student.peer1" in report.write(make(several)).read_text("utf-8")


def test_a_player_s_damaged_figures_are_named(several: dict[str, Any], make: Make) -> None:
    several["stages/student/players/peer1/metrics.json"]["accuracy"] = 7
    with pytest.raises(ArtifactError, match=r"players/peer1/metrics\.json is not what a run writes"):
        _run.read(make(several))


@pytest.mark.parametrize("damage", [[], {"epochs": 3}, {"epochs": ["x"]}])
def test_a_damaged_log_of_several_is_named(damage: Any, several: dict[str, Any], make: Make) -> None:
    several["stages/student/history.json"] = damage
    with pytest.raises(ArtifactError, match=r"student/history\.json is not what a run writes"):
        _run.read(make(several))


def test_the_example_in_the_docstring() -> None:
    import doctest

    assert doctest.testmod(_players).failed == 0
