"""A training on any of these transfer sets that was interrupted goes on to the same weights, to the bit; so does one that a black box teaches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.watched import Watched, press

from limbeck.core.errors import Interrupted
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime

FOREST = {"kind": "fitted", "estimator": "python:sklearn.ensemble:RandomForestClassifier", "options": {"n_estimators": 5}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("noise", {"deviation": 0.2}), ("mixed", {"alpha": 1.0}), ("unlabelled", {"labelled": 20, "per_batch": 8}), ("left_out", {"classes": [3]}),
    ],
)  # fmt: skip
def test_interrupted_and_resumed(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    task = build("tasks", "image", {"data": "digits", "subset": 128, "augment": [{"kind": "shift", "pixels": 1}]})

    def train(folder: Path, at: int = 0) -> dict[str, torch.Tensor]:
        loader = build("transfer", kind, options).loader(task, batch_size=16, seed=1)
        torch.manual_seed(0)
        student = build("models", "mlp", {"widths": [8], "dropout": 0.1}, in_shape=(1, 8, 8), classes=10)
        teacher = build("teachers", "blackbox", {"source": FOREST, "keep": str(tmp_path / "kept")})
        objectives = [build("objectives", name, {}) for name in ("response.kd", "supervised")]
        scheme = build("schemes", "offline", {}, student, teacher, objectives, task, next(loader.batches(0)), task.facts())
        torch.manual_seed(1)
        plan = Training.model_validate({"epochs": 3, "batch_size": 16, "optimizer": {"kind": "adam"}})
        fit(scheme, task, Watched(loader, press(at)), plan, Runtime(), work=Work(folder, folder / "logs"), listener=silent)
        return dict(scheme.state_dict())

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", at=len(build("transfer", kind, options).loader(task, batch_size=16)) + 3)
    resumed = train(tmp_path / "cut")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
