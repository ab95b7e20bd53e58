"""A small classification task, and one call that trains on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.watched import Watched
from torch import Tensor, nn

from limbeck.core.events import Event, silent
from limbeck.core.lookup import build
from limbeck.core.scheme import Scheme
from limbeck.core.task import Batch, Loader, Task
from limbeck.engine.loop import Fit, Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime


@dataclass
class Trial:
    """Everything that one training needs, made anew from a seed."""

    task: Task
    plan: Training
    student: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module] | None = None
    objectives: Callable[[], list[Any]] = lambda: [build("objectives", "supervised", {})]
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def scheme(self) -> Scheme:
        torch.manual_seed(self.seed)
        student, teacher = self.student(), None if self.teacher is None else self.teacher()
        example = next(self.loader().batches(0))
        made: Scheme = build("schemes", "offline", self.options, student, teacher, self.objectives(), self.task, example, self.task.facts())
        torch.manual_seed(self.seed + 1)
        return made

    def loader(self) -> Loader:
        return self.task.loader("train", batch_size=self.plan.batch_size // self.plan.accumulate, seed=self.seed)

    def run(
        self, folder: Path | None = None, *, at: Callable[[int, Batch], Batch] | None = None, listener: Callable[[Event], None] = silent
    ) -> tuple[dict[str, Tensor], Fit]:
        """Train from the start, or on from what `folder` holds; return the scheme's last state and how it went."""
        scheme = self.scheme()
        loader = self.loader() if at is None else Watched(self.loader(), at)
        work = None if folder is None else Work(folder, folder / "logs")
        fitted = fit(scheme, self.task, loader, self.plan, Runtime(precision=self.plan.precision), work=work, listener=listener)
        return dict(scheme.state_dict()), fitted


@pytest.fixture(scope="session")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 6x6 images: 240 to train and validate on, 60 to test on."""
    made = np.random.default_rng(0)
    labels = made.integers(0, 3, 300)
    images = (made.normal(size=(300, 6, 6)) + 0.5 * labels[:, None, None]).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=images[:240], y_train=labels[:240], x_test=images[240:], y_test=labels[240:])
    return path


@pytest.fixture
def make_task(arrays: Path) -> Callable[..., Task]:
    """Make the toy task: 192 examples to train on, 48 to validate on, 60 to test on."""
    return lambda **options: build("tasks", "image", {"data": "npz", "root": str(arrays), "validation": 0.2, **options})


def mlp(*widths: int, dropout: float = 0.0) -> nn.Module:
    return build("models", "mlp", {"widths": list(widths), "dropout": dropout}, in_shape=(1, 6, 6), classes=3)


def kd(weight: float = 1.0, **options: Any) -> Any:
    return weight * build("objectives", "response.kd", options)


def supervised(weight: float = 1.0) -> Any:
    return weight * build("objectives", "supervised", {})


def game(weight: float = 1.0, **options: Any) -> Any:
    return weight * build("objectives", "adversarial.logit_discriminator", {"hidden": 8, **options})


def hint(weight: float = 1.0, **options: Any) -> Any:
    return weight * build("objectives", "feature.fitnet", {"layers": {"layer1": "layer1"}, "reduction": "mean", **options})
