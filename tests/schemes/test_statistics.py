"""The gap between batch statistics and running ones, against naive loops."""

import math

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.schemes._statistics import running_norms, statistics_gap, whole_gap


def test_the_statistics_are_those_of_each_channel_over_the_batch() -> None:
    torch.manual_seed(0)
    x, mean, variance = torch.randn(4, 3, 5, 5), torch.randn(3), torch.rand(3)
    means = [float(x[:, c].double().mean()) for c in range(3)]
    variances = [float(((x[:, c].double() - means[c]) ** 2).mean()) for c in range(3)]
    naive = math.dist(means, mean.tolist()) + math.dist(variances, variance.tolist())
    assert math.isclose(float(statistics_gap(x, mean, variance)), naive, rel_tol=1e-5)
    norm = nn.BatchNorm2d(3, momentum=1.0)
    norm(x)
    assert norm.running_mean is not None and norm.running_var is not None
    assert statistics_gap(x, norm.running_mean, norm.running_var * 99 / 100) < 1e-5, "torch keeps the unbiased variance of 100 numbers"
    assert statistics_gap(x[:, :, 0, 0], torch.zeros(3), torch.ones(3)).ndim == 0, "of vectors too"


def test_a_relative_gap_does_not_change_with_the_scale_of_a_channel() -> None:
    torch.manual_seed(0)
    x, mean, variance = torch.randn(8, 3, 5, 5), torch.randn(3), 1 + torch.rand(3)
    scale = torch.tensor([1.0, 30.0, 900.0])
    plain = statistics_gap(x, mean, variance, relative=True)
    assert torch.isclose(plain, statistics_gap(x * scale.view(-1, 1, 1), mean * scale, variance * scale**2, relative=True), rtol=1e-3)
    naive = [(x[:, c].mean() - mean[c]) / variance[c].sqrt() for c in range(3)], [x[:, c].var(correction=0) / variance[c] - 1 for c in range(3)]
    expected = sum(math.sqrt(sum(float(one) ** 2 for one in part)) for part in naive) / math.sqrt(3)
    assert float(plain) == pytest.approx(expected, rel=1e-3)


def test_the_whole_gap_is_over_all_norms_that_keep_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2), nn.BatchNorm1d(2))
    norms = running_norms(model, "it")
    assert list(norms) == ["1:in", "4:in"]
    read = {"1:in": torch.randn(6, 3), "4:in": torch.randn(6, 2)}
    expected = sum(float(statistics_gap(x, torch.zeros(x.shape[1]), torch.ones(x.shape[1]))) for x in read.values())
    assert float(whole_gap(read, norms, relative=False)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(MismatchError, match="it reads the running statistics of the teacher's batch norms, and Linear has none"):
        running_norms(nn.Linear(2, 2), "it")
