"""The loop of one's own: four lines of limbeck, projector learnt, teacher untouched."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"


def test_it_learns_with_its_projector_and_leaves_the_teacher_alone(run: Callable[..., Any]) -> None:
    losses, seen = run("plain_loop", epochs=3)
    assert losses[0] > 1.5 * losses[1] > 1.5 * losses[2] > 0
    assert {name for name in seen.moved() if name.startswith("terms.")} == {f"terms.1.objective.projectors.0.linear.{each}" for each in ("weight", "bias")}
    assert {name for name in seen.moved() if name.startswith("student.")} == {f"student.{name}" for name, _ in seen.student.named_parameters()}
    assert not seen.teacher_moved()


def test_limbeck_takes_four_lines(marked: Callable[[str], list[str]]) -> None:
    assert len(marked("plain_loop")) <= 4


def test_it_runs_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.count("epoch ") == 5
