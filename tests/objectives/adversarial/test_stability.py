"""How often the discriminator is right, epoch by epoch: measured, and neither a coin's nor certain while both sides learn."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.engine.loop import fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime


@pytest.fixture(scope="module")
def task() -> Task:
    return build("tasks", "image", {"data": "digits", "subset": 640})


def model(kind: str, seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build("models", kind, options, in_shape=(1, 8, 8), classes=10)


@pytest.fixture(scope="module")
def teacher(task: Task) -> nn.Module:
    made = model("mlp", 1, widths=[128])
    plan = Training.model_validate({"epochs": 12, "batch_size": 32, "optimizer": {"kind": "adam", "lr": 0.003}})
    scheme = build("schemes", "offline", {}, made, None, [build("objectives", "supervised", {})], task, None, task.facts())
    fit(scheme, task, task.loader("train", batch_size=32), plan, Runtime(), listener=silent)
    return made


def played(task: Task, teacher: nn.Module, kind: str, *, student: float = 0.003, epochs: int = 8, opponent: float, **options: Any) -> list[float]:
    """The opponent's accuracy in each epoch."""
    name = kind.rpartition(".")[2]
    terms = [0.9 * build("objectives", "response.kd", {}), 0.1 * build("objectives", "supervised", {}), 0.1 * build("objectives", kind, options)]
    pupil = model("mlp", 0, widths=[16])
    loader = task.loader("train", batch_size=32)
    scheme = build("schemes", "offline", {}, pupil, teacher, terms, task, next(loader.batches(0)), task.facts())
    own = {name: {"kind": "adam", "lr": opponent, "betas": [0.0, 0.9]}}
    told = {"epochs": epochs, "batch_size": 32, "optimizer": {"kind": "adam", "lr": student}, "optimizers": own, "schedule": {"kind": "constant"}}
    found = fit(scheme, task, loader, Training.model_validate(told), Runtime(), listener=silent)
    return [row["parts"][f"{name}_accuracy"] for row in found.history]


@pytest.mark.parametrize(
    ("kind", "opponent", "options"),
    [
        ("adversarial.logit_discriminator", 1e-3, {}),
        ("adversarial.logit_discriminator", 1e-4, {"loss": "wgan_gp"}),
        ("adversarial.feature_discriminator", 1e-3, {"layers": {"head": "head"}}),
    ],
)
def test_it_neither_collapses_nor_is_it_always_right(task: Task, teacher: nn.Module, kind: str, opponent: float, options: dict[str, Any]) -> None:
    """A critic knows an untrained student from afar; from the middle on each side has learnt of the other."""
    found = played(task, teacher, kind, opponent=opponent, **options)
    assert all(0.4 < one < 0.95 for one in found[4:])
    assert max(found) > 0.55


def test_the_measure_shows_a_discriminator_that_has_won(task: Task, teacher: nn.Module) -> None:
    """Against a student that stands still it comes to be always right."""
    won = played(task, teacher, "adversarial.logit_discriminator", student=1e-9, opponent=0.01, epochs=3)
    assert won[-1] > 0.97
