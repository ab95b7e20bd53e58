"""A network that can answer before its end has a table and a curve; one that cannot has neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.core.errors import ArtifactError
from limbeck.report import write

Make = Callable[[dict[str, Any]], Path]
EXITS: dict[str, Any] = {
    "examples": 360,
    "exits": [
        {"name": "exit1", "accuracy": 0.81, "accuracy_low": 0.766, "accuracy_high": 0.847, "macs": 210_000},
        {"name": "main", "accuracy": 0.969, "accuracy_low": 0.946, "accuracy_high": 0.983, "macs": 1_204_000},
    ],
    "policy": [
        {"threshold": 0.0, "accuracy": 0.81, "macs": 210_000.0, "shares": [1.0, 0.0]},
        {"threshold": 0.9, "accuracy": 0.96, "macs": 700_123.4, "shares": [0.55, 0.45]},
        {"threshold": 1.01, "accuracy": 0.969, "macs": 1_224_000.0, "shares": [0.0, 1.0]},
    ],
}


def test_the_curve_says_its_figures_in_words_and_the_table_their_intervals(content: dict[str, Any], make: Make) -> None:
    content["stages/student/exits.json"] = EXITS
    content["measurement.json"]["models"]["student.exit1"] = {"latency_ms_p50": 0.0312}
    page = write(make(content)).read_text()
    assert "threshold 0.9: 96.0% at 700 k MACs" in page
    assert '<th scope="row">exit1</th><td>81.0%<span class="under">76.6\u201384.7</span></td><td>210 k</td><td>0.0312 ms</td>' in page
    assert '<th scope="row">main</th><td>96.9%' in page and "on 360 test images" in page


def test_a_run_without_exits_says_nothing_of_them(content: dict[str, Any], make: Make) -> None:
    page = write(make(content)).read_text()
    assert "Answers before the end" not in page and "#anytime" not in page


@pytest.mark.parametrize("change", [{"policy": []}, {"exits": [{"name": "exit1"}]}, {"examples": -1}])
def test_a_damaged_file_is_named(content: dict[str, Any], make: Make, change: dict[str, Any]) -> None:
    content["stages/student/exits.json"] = {**EXITS, **change}
    with pytest.raises(ArtifactError, match=r"exits\.json is not what a run writes"):
        write(make(content))
