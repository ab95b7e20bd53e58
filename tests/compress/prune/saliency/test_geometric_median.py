"""Geometric median."""

import math

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune.channels import Channels
from limbeck.compress.prune.saliency.geometric_median import GeometricMedian
from limbeck.core.errors import DataError
from limbeck.measure.size import macs
from limbeck.tasks.classify import Classify


@pytest.fixture
def bench():
    x, y = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    return Bench(Classify({"train": [(x, y)]}, classes=3), macs=lambda model: macs(model, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)).eval()


def test_it_is_the_sum_of_distances_to_all_others():
    units = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    naive = [sum(math.dist(one.tolist(), other.tolist()) for other in units) for one in units]
    assert torch.allclose(GeometricMedian().total(units), torch.tensor(naive, dtype=torch.float64))
    assert GeometricMedian().total(units.float()).dtype == torch.float32
    assert GeometricMedian().total(units[:1]).tolist() == [0]


def test_of_equal_filters_one_goes_however_large_and_the_far_one_stays_however_small(model, bench):
    with torch.no_grad():
        model[0].weight.fill_(5.0)
        model[0].weight[2] = 0.01
        model[0].weight[4] = 20.0
    made = Channels(target={"ratio": 0.5}, saliency="geometric_median", weighed="filters", scope="local").operate(model, bench).model
    left = made[0].weight.flatten(1)[:, 0]
    assert left.tolist() == pytest.approx([0.01, 20.0, 5.0])
    magnitude = Channels(target={"ratio": 0.5}, saliency="magnitude", weighed="filters", scope="local").operate(model, bench).model
    assert 0.01 not in magnitude[0].weight.flatten().tolist()


def test_contributions_are_the_weights_and_a_copy(model, bench):
    found = GeometricMedian().contributions(model, ["0.weight"], bench)["0.weight"]
    assert torch.equal(found, model[0].weight) and not found.requires_grad
    found.zero_()
    assert model[0].weight.abs().sum() > 0
    with torch.no_grad():
        model[0].weight[0] = math.nan
    with pytest.raises(DataError, match=r"'0\.weight' is not finite"):
        GeometricMedian().contributions(model, ["0.weight"], bench)
