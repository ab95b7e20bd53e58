"""`prune.finish`: what was masked becomes an exact zero of a plain weight, and stays one."""

import copy
import json
from typing import Any, cast

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune._schedule import masked
from limbeck.compress.prune._target import Ratio
from limbeck.compress.prune.finish import Finish
from limbeck.compress.prune.gradual import Gradual
from limbeck.core.errors import MismatchError
from limbeck.core.objective import Clocked
from limbeck.core.schedule import Clock

BENCH = cast(Bench, None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))


def trained(share: float = 0.9, **options: Any) -> nn.Module:
    """A model prepared, and told that so much of its training is done."""
    model = Gradual(**{"target": {"ratio": 0.8}, **options}).operate(network(), BENCH).model.train()
    x = torch.randn(8, 1, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in (0.0, share):
        for module in model.modules():
            if isinstance(module, Clocked):
                module.clock = Clock(epoch, 1.0)
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("saliency", ["magnitude", "movement"])
def test_it_answers_the_same_by_plain_weights_with_exact_zeros(saliency: str) -> None:
    model = trained(saliency=saliency)
    masks, x = {name: mask.mask.clone() for name, mask in masked(model)}, torch.randn(5, 1, 6, 6)
    before = model(x)
    done = Finish().operate(model, BENCH)
    assert torch.equal(done.model(x), before)
    assert sorted(done.model.state_dict()) == sorted(network().state_dict())
    for name, mask in masks.items():
        weight = done.model.get_parameter(name)
        assert torch.equal(weight != 0, mask) and not torch.signbit(weight[~mask]).any(), "a zero is +0.0, one pattern of bits"
    left = sum(int(mask.sum()) for mask in masks.values())
    assert done.metrics == {"sparsity": pytest.approx(1 - left / 438), "weights_left": left}
    assert [row["name"] for row in done.layers] == list(masks)


def test_saved_and_rebuilt_from_a_fresh_model_it_answers_the_same() -> None:
    done = Finish().operate(trained(), BENCH)
    record, x = json.loads(json.dumps(done.record)), torch.randn(3, 1, 6, 6)
    torch.manual_seed(9)
    fresh = Finish.rebuild(network(), record)
    fresh.load_state_dict(done.model.state_dict())
    assert torch.equal(fresh.eval()(x), done.model(x))
    chained = Finish.rebuild(Gradual.rebuild(network(), dict(Gradual(target=Ratio(ratio=0.8)).operate(network(), BENCH).record)), record)
    chained.load_state_dict(done.model.state_dict())


@pytest.mark.parametrize(
    ("kind", "options"), [("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}), ("Adam", {"lr": 0.01}), ("AdamW", {"lr": 0.01, "weight_decay": 0.1})]
)
def test_held_its_zeros_stay_under_every_optimizer_and_the_rest_moves(kind: str, options: dict[str, Any]) -> None:
    done = Finish().operate(trained(), BENCH)
    begun = copy.deepcopy(done.model)
    Finish.hold(done.model, done.record)
    for model, holds in ((done.model.train(), True), (begun.train(), False)):
        before = {name: model.get_parameter(name).detach().clone() for name in done.record["parameters"]}
        optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
        for step in range(5):
            model(torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, old in before.items():
            now = model.get_parameter(name)
            assert not torch.equal(now, old)
            assert (now[old == 0] == 0).all() == holds


def test_a_model_with_nothing_to_finish_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"nothing to finish.*prune\.gradual"):
        Finish().operate(network(), BENCH)


def test_a_training_that_stopped_before_the_end_is_refused_with_how_far_it_came() -> None:
    model = trained(0.3, every=0.05)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MismatchError, match=r"6 of 15 prunings, at a sparsity of 62\.7% and not 80\.0%"):
        Finish().operate(model, BENCH)
    assert before.keys() == model.state_dict().keys()
