"""Batch-norm scale."""

import math

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune.channels import Channels
from limbeck.compress.prune.saliency.bn_scale import BNScale
from limbeck.core.errors import DataError, MismatchError
from limbeck.measure.size import macs
from limbeck.tasks.classify import Classify


def bench_of(examples=12):
    x, y = torch.randn(examples, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(examples) % 3
    task = Classify({"train": [(x, y)]}, classes=3)
    return Bench(task, macs=lambda model: macs(model, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)


def net(*norms):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), norms[0], nn.ReLU(), nn.Conv2d(8, 6, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    return nn.Sequential(*layers).eval()


def test_it_is_the_absolute_scale_and_says_nothing_of_other_weights():
    model = net(nn.BatchNorm2d(8), nn.Identity())
    nn.init.normal_(model[1].weight)
    found = BNScale().contributions(model, ["0.weight", "1.weight", "1.bias"], bench_of())
    assert torch.equal(found["1.weight"], model[1].weight.detach().abs())
    assert found["0.weight"].isnan().all() and found["0.weight"].shape == model[0].weight.shape and found["1.bias"].isnan().all()


def test_units_cost_the_sum_of_their_scales_and_nan_without_one():
    nan = torch.nan
    total = BNScale().total(torch.tensor([[nan, 1.0, 2.0], [nan, nan, nan], [0.0, nan, 0.0]]))
    assert total[0] == 3 and total[1].isnan() and total[2] == 0


def test_the_smallest_scales_go_and_layers_without_norm_stay_whole():
    model = net(nn.BatchNorm2d(8), nn.Identity())
    model[1].weight.data = torch.tensor([0.1, -2.0, 0.3, 1.0, -0.2, 3.0, 0.4, -4.0])
    done = Channels(target={"ratio": 0.5}, saliency="bn_scale").operate(model, bench_of())
    assert torch.equal(done.model[0].weight, model[0].weight[[1, 3, 5, 7]])
    assert done.model[3].out_channels == 6
    assert any("3 stays whole or in part: BNScale says nothing about it" in line for line in done.said)


@pytest.mark.parametrize(
    ("norms", "words"),
    [((nn.Identity(), nn.Identity()), "it has no batch norm with a scale"), ((nn.BatchNorm2d(8, affine=False), nn.GroupNorm(1, 6)), "no batch norm")],
)
def test_a_model_without_batch_norm_is_refused(norms, words):
    with pytest.raises(MismatchError, match=rf"bn_scale says nothing about the \d+ weights of Sequential .*{words}.*magnitude"):
        Channels(target={"ratio": 0.5}, saliency="bn_scale").operate(net(*norms), bench_of())
    with pytest.raises(MismatchError, match="its batch norm is none of them"):
        BNScale().contributions(net(nn.BatchNorm2d(8), nn.Identity()), ["0.weight"], bench_of())


def test_scales_that_are_not_finite_are_refused():
    model = net(nn.BatchNorm2d(8), nn.Identity())
    model[1].weight.data[2] = math.inf
    with pytest.raises(DataError, match=r"'1\.weight' is not finite"):
        BNScale().contributions(model, ["1.weight"], bench_of())
