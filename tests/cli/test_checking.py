"""`limbeck check --dry`: what the doctor found, on standard output, and the exit code that goes with it."""

import json
from pathlib import Path

import pytest

from limbeck.cli.entry import invoke

WEIGHTLESS = ["--set", "stages.student.objectives.0.weight=0"]
DEAD = ["--set", "stages.student.objectives=[{kind: supervised}, {kind: 'python:ruined:Dead'}]"]
SHORT = ["--set", "stages.teacher.epochs=1"]

RUINED = '''
from limbeck.objectives.response.kd import kd_loss
from limbeck.core.knowledge import Needs
from limbeck.core.objective import Objective


class Dead(Objective):
    """Forgets the student's graph."""

    @property
    def needs(self):
        return Needs()

    def bind(self, student, teacher, task, facts):
        pass

    def forward(self, student, teacher, batch):
        return kd_loss(student.main.logits.detach(), teacher.main.logits)
'''


def test_a_sound_recipe_ends_with_no_fault(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(["check", "digits", "--dry", "--out", str(tmp_path), *SHORT]) == 0
    told, progress = capfd.readouterr()
    lines = told.splitlines()
    assert lines[-1] == "0 faults, 0 warnings"
    assert any(line.startswith("stage student: distill") for line in lines), "the check's own lines come first"
    assert "student: fine: what teacher knows, and how strong its gradient is, is not looked at: it has no weights yet; run it, then check again" in lines
    assert not any("fault:" in line for line in lines)
    assert "Traceback" not in progress


def test_an_objective_without_weight_is_a_warning(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(["check", "digits", "--dry", "--out", str(tmp_path), *SHORT, *WEIGHTLESS]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "0 faults, 1 warning"
    assert any(line.startswith("student: warning: kd has a weight of zero") for line in lines)


def test_a_fault_exits_with_two_and_is_in_the_object(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ruined.py").write_text(RUINED)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert invoke(["check", "digits", "--dry", "--json", "--quiet", "--out", str(tmp_path), *SHORT, *DEAD]) == 2
    told = json.loads(capfd.readouterr().out)
    assert set(told) == {"recipe", "checked", "findings"}
    (fault,) = [one for one in told["findings"] if one["level"] == "fault"]
    assert (fault["stage"], fault["about"]) == ("student", "gradient")
    assert fault["text"].startswith("ruined gives the student no gradient")


def test_out_without_dry_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", "digits", "--out", "somewhere"]) == 2
    assert "--out names the run whose trained teachers the doctor asks: it goes with --dry" in capfd.readouterr().err
