"""The n:m pattern: every group has it, and the dearest stay."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune.nm import Nm
from limbeck.core.errors import RecipeError
from limbeck.core.lookup import build
from limbeck.tasks.classify import Classify


def fresh() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture
def bench():
    torch.manual_seed(0)
    task = Classify({"train": [(torch.randn(12, 2, 4, 4), torch.arange(12) % 3)]}, classes=3)
    return Bench(task, macs=lambda _: 1, latency_ms=lambda _: math.nan, score=lambda _: math.nan)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return fresh().eval()


def test_two_of_four_stay_along_the_inputs(model, bench):
    linear, conv = model[5].weight.detach().clone(), model[2].weight.detach().clone()
    made = Nm().operate(model, bench)
    groups = linear.reshape(3, 16, 4)
    wanted = torch.zeros_like(groups).scatter_(2, groups.abs().argsort(2)[:, :, 2:], 1) * groups
    assert torch.equal(model[5].weight, wanted.reshape(3, 64))
    for o in range(4):
        for u in range(3):
            for v in range(3):
                for start in (0, 4):
                    row, now = conv[o, start : start + 4, u, v], model[2].weight[o, start : start + 4, u, v]
                    kept = row.abs().argsort()[2:]
                    assert now.count_nonzero() == 2 and torch.equal(now[kept], row[kept])
    assert made.said == ["'0.weight' stays dense: its 2 inputs are no multiple of 4"]
    assert model[0].weight.all() and made.record == {"parameters": ["2.weight", "5.weight"]}
    assert made.metrics["weights_left"] == 144 + 144 + 96
    assert made.layers[1] == {"name": "2.weight", "weights": 288, "left": 144}
    with pytest.raises(RecipeError, match="have the pattern 2:4 already"):
        Nm(spare=["0"]).operate(model, bench)
    Nm(n=1, m=4).operate(model, bench)
    assert (model[5].weight.reshape(3, 16, 4).count_nonzero(2) == 1).all()


@pytest.mark.parametrize("saliency", ["wanda", "obs", "random", {"kind": "obd", "examples": 12}])
def test_any_saliency(saliency, model, bench):
    before = model[5].weight.detach().clone()
    Nm(n=3, m=8, saliency=saliency, layers=["5"]).operate(model, bench)
    assert (model[5].weight.reshape(3, 8, 8).count_nonzero(2) == 3).all()
    kept = model[5].weight != 0
    assert torch.equal(model[5].weight[kept], before[kept]) == (saliency != "obs")


def test_saved_rebuilt_and_held(model, bench):
    made = Nm().operate(model, bench)
    again = Nm.rebuild(fresh(), json.loads(json.dumps(made.record)))
    again.load_state_dict(load(save(made.model.state_dict())))
    x = torch.randn(5, 2, 4, 4)
    assert torch.equal(again.eval()(x), made.model(x))
    Nm.hold(again, made.record)
    zero = again[5].weight == 0
    optimizer = torch.optim.AdamW(again.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        again(x).square().sum().backward()
        optimizer.step()
    assert torch.equal(again[5].weight == 0, zero)


def test_what_makes_no_pattern(model, bench):
    for n, m in ((4, 4), (0, 4), (5, 4)):
        with pytest.raises(RecipeError, match="is no pattern"):
            Nm(n=n, m=m)
    with pytest.raises(RecipeError, match=r"2:4 fits no layer: '0.weight' stays dense: its 2 inputs"):
        Nm(layers=["0"]).operate(model, bench)
    assert build("compress", "nm", {"n": 1, "m": 2}).m == 2
