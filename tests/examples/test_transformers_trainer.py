"""The same under transformers' Trainer: its own optimizer steps the projector, and the student stays a model that it can save."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
pytest.importorskip("transformers", reason='needs transformers: pip install "limbeck[transformers]"')
pytest.importorskip("accelerate", reason='needs accelerate: pip install "limbeck[transformers]"')


def test_it_learns_with_its_projector_and_leaves_the_teacher_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    trainer, seen = run("transformers_trainer", epochs=3)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3
    assert losses[0] > 1.2 * losses[1] > 1.2 * losses[2] > 0
    assert {name for name in seen.moved() if name.startswith("terms.")} == {f"terms.1.objective.projectors.0.linear.{each}" for each in ("weight", "bias")}
    assert {f"student.{name}" for name, _ in seen.student.named_parameters()} <= seen.moved()
    assert not seen.teacher_moved()
    assert not any("teacher" in name for name in trainer.model.state_dict())
    seen.student.save_pretrained(tmp_path)
    again = type(seen.student).from_pretrained(tmp_path)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(images).logits, seen.student.eval()(images).logits)


def test_limbeck_takes_four_lines(marked: Callable[[str], list[str]]) -> None:
    assert len(marked("transformers_trainer")) <= 4
