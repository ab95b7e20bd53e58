"""A new method is one file: dropped into a package with an entry point, it is listed, checked, shown and run from a recipe; nothing else is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

METHOD = '''
"""Match the squares of the logits.

Nobody, "A method made up for a test", 2026, eq. 1.
"""

from torch import Tensor

from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task


def squares_loss(student: Tensor, teacher: Tensor, *, power: float) -> Tensor:
    return (student.abs() ** power - teacher.detach().abs() ** power).square().mean(-1)


class Squares(Objective):
    """Match the squares of the logits.

    Args:
        power: what the logits are raised to.
    """

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        assert teacher is not None

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return squares_loss(student.main.logits, teacher.main.logits, power=self.power)
'''

RECIPE = """
name: plugged
task: {kind: image, data: digits}
stages:
  teacher: {kind: train, model: {kind: mlp, widths: [8]}, epochs: 1}
  student:
    kind: distill
    teacher: {kind: frozen, of: teacher}
    model: {kind: mlp, widths: [4]}
    epochs: 1
    objectives: [{kind: response.squares, power: 1.5, weight: 0.1}, {kind: supervised}]
measure: {latency: false}
"""


def test_a_method_in_a_package_of_its_own_runs_from_a_recipe(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "squares_plug_in").mkdir(parents=True)
    (site / "squares_plug_in" / "__init__.py").touch()
    (site / "squares_plug_in" / "squares.py").write_text(METHOD)
    (site / "squares_plug_in-1.0.dist-info").mkdir()
    (site / "squares_plug_in-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: squares-plug-in\nVersion: 1.0\n")
    (site / "squares_plug_in-1.0.dist-info" / "entry_points.txt").write_text("[limbeck.objectives]\nresponse.squares = squares_plug_in.squares\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def limbeck(*arguments: str) -> str:
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "limbeck", *arguments], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "response.squares" in limbeck("list")
    assert "what the logits are raised to" in limbeck("show", "response.squares")
    told = json.loads(limbeck("run", "recipe.yaml", "--json", "--quiet"))
    history = json.loads((tmp_path / told["stages"]["student"]["artifact"] / "history.json").read_text())
    assert history["epochs"][0]["parts"]["squares"] > 0
