"""Measurement within a run: done once, and every artifact keeps its figures."""

import shutil
from pathlib import Path
from typing import Any

from limbeck.core.artifact import Artifact
from limbeck.core.events import Event, StageStarted, silent
from limbeck.pipeline.run import run_recipe

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits", "subset": 256},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 32},
        "shipped": {"kind": "export", "of": "teacher"},
    },
    "measure": {"seconds": 0.02},
}


def test_an_artifact_made_again_to_the_same_bits_has_its_figures_again(tmp_path: Path) -> None:
    run_recipe(TREE, out=tmp_path, listener=silent)
    before = Artifact.open(tmp_path / "stages" / "teacher").metrics
    assert before["latency_ms_p50"] == Artifact.open(tmp_path / "stages" / "shipped").metrics["latency_ms_p50"], "one file stands for both"
    shutil.rmtree(tmp_path / "stages" / "teacher")
    heard: list[Event] = []
    run_recipe(TREE, out=tmp_path, listener=heard.append)
    assert "measurement" not in [event.stage for event in heard if isinstance(event, StageStarted)]
    after = Artifact.open(tmp_path / "stages" / "teacher").metrics
    assert {name: after[name] for name in before if name.startswith(("latency", "file", "peak"))} == {
        name: before[name] for name in before if name.startswith(("latency", "file", "peak"))
    }
