"""A bench on a few seeded examples, in float64, and nets small enough for the whole Hessian."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.core.task import Task
from limbeck.tasks.classify import Classify


def make_bench(task: Task, seed: int = 0) -> Bench:
    return Bench(task, macs=lambda _: 1, latency_ms=lambda _: math.nan, score=lambda _: math.nan, seed=seed)


@pytest.fixture
def bench_of() -> Callable[..., Bench]:
    return make_bench


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[12, 2, 4, 4]` and labels of 3 classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 2, 4, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3


@pytest.fixture
def bench(data: tuple[torch.Tensor, torch.Tensor]) -> Bench:
    x, y = data
    return make_bench(Classify({"train": [(x[:6], y[:6]), (x[6:], y[6:])]}, classes=3))


@pytest.fixture
def mlp() -> nn.Module:
    """32-3-3, tanh: 111 numbers, 105 of them weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.Tanh(), nn.Linear(3, 3)).double()


@pytest.fixture
def conv() -> nn.Module:
    """A strided, padded convolution in groups, an in-place layer behind it, and a head."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()
