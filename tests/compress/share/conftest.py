"""What a surgery here asks of a bench: nothing but its seed, and its data where curvature is asked for."""

import pytest
import torch

from limbeck.compress import Bench
from limbeck.core.lookup import build


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def bench() -> Bench:
    return Bench(build("tasks", "image", {"data": "digits"}), macs=lambda _: 0, latency_ms=lambda _: 0.0, score=lambda _: 0.0, seed=3)
