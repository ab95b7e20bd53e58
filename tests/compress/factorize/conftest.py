"""A bench on random data, for models of any input."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.measure.size import macs
from limbeck.tasks.classify import Classify


@pytest.fixture
def bench_of() -> Callable[..., Bench]:
    """Return a function: inputs [N, ...] -> a bench whose training batches they are, in 4 classes."""

    def make(inputs: torch.Tensor) -> Bench:
        labels = torch.arange(len(inputs)) % 4
        data = torch.utils.data.TensorDataset(inputs, labels)
        task = Classify({"train": torch.utils.data.DataLoader(data, batch_size=len(inputs))}, classes=4)

        def count(model: nn.Module) -> int:
            return macs(model, inputs[:1])

        def never(_model: nn.Module) -> float:
            raise AssertionError("nothing here measures latency or scores")

        return Bench(task, count, never, never)

    return make
