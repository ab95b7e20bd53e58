"""The same under Lightning's Trainer: the projector is stepped and saved, the teacher is neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason='needs Lightning: pip install "limbeck[lightning]"')

pytestmark = [
    pytest.mark.filterwarnings(
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated, use `isinstance\(treespec, TreeSpec\) and treespec.is_leaf\(\)` instead.:"
        "FutureWarning:pytorch_lightning.utilities._pytree"
    ),
    pytest.mark.filterwarnings(
        "ignore:The 'train_dataloader' does not have many workers which may be a bottleneck. Consider increasing the value of the `num_workers` argument`.*:"
        "UserWarning:pytorch_lightning.trainer.connectors.data_connector"
    ),
]


def test_it_learns_and_its_checkpoint_holds_projector_and_student_and_no_teacher(run: Callable[..., Any], tmp_path: Path) -> None:
    trainer, seen = run("lightning_trainer", epochs=2)
    projector = {f"terms.1.objective.projectors.0.linear.{each}" for each in ("weight", "bias")}
    student = {f"student.{name}" for name in seen.student.state_dict()}
    assert seen.moved() == projector | student
    assert not seen.teacher_moved()
    assert not seen.teacher.training
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"kd.{name}" for name in projector | student}
    assert all(saved[f"kd.student.{name}"].equal(value) for name, value in seen.student.state_dict().items())


def test_its_loss_falls(run: Callable[..., Any]) -> None:
    once, more = (float(run("lightning_trainer", epochs=epochs)[0].callback_metrics["loss_epoch"]) for epochs in (1, 3))
    assert 0 < more < once / 2


def test_limbeck_takes_four_lines(marked: Callable[[str], list[str]]) -> None:
    assert len(marked("lightning_trainer")) <= 4
