"""`limbeck.report.write`: which files it reads, what it refuses, what it never loads."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck import report
from limbeck.core.errors import ArtifactError

Make = Callable[[dict[str, Any]], Path]


def test_the_report_lies_in_the_run_and_the_same_files_give_the_same_bytes(content: dict[str, Any], make: Make) -> None:
    out = make(content)
    path = report.write(out)
    first = path.read_bytes()
    assert path == out / "report.html"
    assert report.write(out).read_bytes() == first
    assert sorted(file.name for file in out.iterdir() if file.is_file()) == ["fidelity.json", "measurement.json", "report.html", "run.json"]


@pytest.mark.parametrize("name", ["run.json", "fidelity.json", "measurement.json", "stages/student/history.json", "stages/student/lineage.json"])
@pytest.mark.parametrize("damage", ['{"stages": {', "[1, 2]", ""])
def test_a_damaged_file_is_named_and_the_old_report_stays(name: str, damage: str, content: dict[str, Any], make: Make) -> None:
    out = make(content)
    (out / "report.html").write_text("old")
    (out / name).write_text(damage)
    with pytest.raises(ArtifactError) as error:
        report.write(out)
    assert str(out / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert (out / "report.html").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("run.json", ("stages", "student", "metrics", "accuracy"), 96.9),
        ("run.json", ("stages", "student", "metrics", "parameters"), -3),
        ("run.json", ("stages", "student", "metrics", "accuracy"), "high"),
        ("run.json", ("stages", "student", "metrics", "nll"), float("nan")),
        ("run.json", ("notes",), "busy"),
        ("fidelity.json", ("pairs", 0, "p"), 1.5),
        ("measurement.json", ("ratios", 0, "ratio"), 0.0),
        ("stages/alone/history.json", ("epochs", 3, "train_loss"), float("inf")),
    ],
)
def test_a_figure_that_cannot_be_is_refused_with_its_place(name: str, place: tuple[Any, ...], value: Any, content: dict[str, Any], make: Make) -> None:
    at = content[name]
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    with pytest.raises(ArtifactError, match=r"is not what a run writes") as error:
        report.write(make(content))
    assert name in str(error.value)
    assert ".".join(map(str, place)) in str(error.value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"run\.json is missing"):
        report.write(tmp_path)


def test_unknown_keys_are_ignored(content: dict[str, Any], make: Make) -> None:
    before = report.write(make(content)).read_bytes()
    for name in content:
        content[name]["of_tomorrow"] = {"x": [1]}
    content["run.json"]["stages"]["student"]["metrics"]["of_tomorrow"] = "text"
    out = make(content)
    for stage in content["run.json"]["stages"]:
        (out / f"stages/{stage}/lineage.json").write_text(
            json.dumps({key: value for key, value in content[f"stages/{stage}/lineage.json"].items() if key != "of_tomorrow"})
        )
    assert report.write(out).read_bytes() == before


def test_neither_models_nor_arrays_are_loaded(content: dict[str, Any], make: Make) -> None:
    code = """
import sys
from pathlib import Path
import limbeck.report
assert not {"torch", "numpy", "jinja2", "pydantic"} & set(sys.modules), "the import is not light"
limbeck.report.write(Path(sys.argv[1]))
assert not {"torch", "numpy", "onnxruntime", "matplotlib"} & set(sys.modules), "a report loads no model"
"""
    subprocess.run([sys.executable, "-c", code, str(make(content))], check=True, timeout=60)
