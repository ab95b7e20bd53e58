"""Pruning weights one by one: how many go, which, that they stay away, and that a model is rebuilt."""

import json
import math
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from limbeck.compress import Bench, Compensating, Held
from limbeck.compress.prune._mask import lowest
from limbeck.compress.prune._target import Keep, Ratio, apportion, weights_left
from limbeck.compress.prune.weights import Weights, _between
from limbeck.core.errors import ArtifactError, DataError, RecipeError
from limbeck.core.lookup import build, find
from limbeck.models.lenet import LeNet
from limbeck.tasks.classify import Classify


def fresh() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 4, 4, generator=generator), torch.arange(24) % 3


@pytest.fixture
def bench(data):
    return Bench(Classify({"train": [data]}, classes=3), macs=lambda _: 1, latency_ms=lambda _: math.nan, score=lambda _: math.nan)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return fresh().eval()


def weights_of(model):
    return torch.cat([model[1].weight.detach().flatten(), model[4].weight.detach().flatten()])


def test_a_ratio_removes_the_smallest_of_all_layers(model, bench):
    before = weights_of(model)
    made = Weights(target=Ratio(ratio=0.75)).operate(model, bench)
    after = weights_of(made.model)
    threshold = before.abs().sort().values[114]  # 152 weights, 38 left
    assert torch.equal(after, torch.where(before.abs() >= threshold, before, 0.0))
    assert made.metrics == {"weights_left": 38, "sparsity": 0.75}
    assert made.record == {"parameters": ["1.weight", "4.weight"]}
    assert [(row["name"], row["weights"]) for row in made.layers] == [("1.weight", 128), ("4.weight", 24)]
    assert sum(row["left"] for row in made.layers) == 38
    assert model[1].bias.all() and model[4].bias.all() and model[2].weight.all()


@pytest.mark.parametrize(("scope", "left"), [("layer", [32, 6]), ("row", [32, 6])])
def test_each_layer_or_row_keeps_its_share(model, bench, scope, left):
    made = Weights(target=Keep(keep=38), scope=scope).operate(model, bench)
    assert [row["left"] for row in made.layers] == left
    counts = model[1].weight.count_nonzero(1)
    assert (counts == 4).all() if scope == "row" else (counts != 4).any()
    assert (model[4].weight.count_nonzero(1) == 2).all() or scope == "layer"


def test_wanda_by_row_is_the_papers(model, data, bench):
    x = data[0].flatten(1)
    score = model[1].weight.detach().abs() * x.norm(dim=0)
    wanted = torch.zeros(8, 16, dtype=torch.bool).scatter_(1, score.argsort(1)[:, 8:], True)
    Weights(target=Ratio(ratio=0.5), saliency="wanda", scope="row", layers=["1"]).operate(model, bench)
    assert torch.equal(model[1].weight != 0, wanted)


def test_pruning_again_goes_on_from_there(model, bench):
    once = deepcopy(model)
    Weights(target=Ratio(ratio=0.9)).operate(once, bench)
    Weights(target=Ratio(ratio=0.5)).operate(model, bench)
    Weights(target=Ratio(ratio=0.9)).operate(model, bench)
    assert torch.equal(weights_of(once), weights_of(model))
    with pytest.raises(RecipeError, match=r"only 15 of 152 weights are not zero.*keep below 15, or a ratio above 0.9013"):
        Weights(target=Keep(keep=15)).operate(model, bench)


def test_steps_measure_again_on_the_way(model, bench):
    """Of random numbers nothing changes from step to step; of curvature it does, and one at a time is `each`."""
    one, many, each = deepcopy(model), deepcopy(model), deepcopy(model)
    Weights(target=Keep(keep=100), saliency="random").operate(one, bench)
    Weights(target=Keep(keep=100), saliency="random", steps=5).operate(many, bench)
    assert torch.equal(weights_of(one), weights_of(many))
    surgery = Weights(target=Keep(keep=140), saliency="fisher", steps="each")
    counted = _counted(surgery)
    surgery.operate(each, bench)
    assert counted == [152 - gone for gone in range(12)]
    naive = deepcopy(model)
    for keep in range(151, 139, -1):
        Weights(target=Keep(keep=keep), saliency="fisher").operate(naive, bench)
    assert torch.equal(weights_of(each), weights_of(naive))
    at_once = Weights(target=Keep(keep=140), saliency="fisher", steps=1000)
    counted = _counted(at_once)
    at_once.operate(deepcopy(model), bench)
    assert len(counted) == 12


def _counted(surgery):
    """Record how many weights there are each time the saliency is asked."""
    seen, asked = [], surgery.saliency.contributions

    def contributions(model, names, bench):
        seen.append(sum(int(model.get_parameter(name).count_nonzero()) for name in names))
        return asked(model, names, bench)

    surgery.saliency.contributions = contributions
    return seen


def test_obs_makes_up_for_what_goes():
    """At a minimum of the loss, with labels that cannot be fitted."""
    torch.manual_seed(0)
    x = torch.randn(300, 1, 4, 4)
    y = (x.flatten(1)[:, :3] + 1.5 * torch.randn(300, 3)).argmax(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    bench = Bench(Classify({"train": [(x, y)]}, classes=3), macs=lambda _: 1, latency_ms=lambda _: math.nan, score=lambda _: math.nan)
    loss = lambda net: nn.functional.cross_entropy(net(x), y).item()  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    rises = {}
    for name in ("obs", "obd", "magnitude", "random"):
        pruned = deepcopy(model)
        Weights(target=Ratio(ratio=0.3), saliency=name, steps=6).operate(pruned, bench)
        rises[name] = loss(pruned) - loss(model)
        kept = pruned[1].weight != 0
        assert torch.equal(pruned[1].weight[kept], model[1].weight[kept]) == (name != "obs")
    alone = deepcopy(model)
    Weights(target=Ratio(ratio=0.3), saliency={"kind": "obs", "order": "alone"}).operate(alone, bench)
    in_turn = deepcopy(model)
    Weights(target=Ratio(ratio=0.3), saliency="obs").operate(in_turn, bench)
    assert rises["obs"] < 0.8 * rises["obd"]
    assert rises["obd"] < rises["random"] / 2
    assert loss(in_turn) < loss(alone)  # in one go, weights that stand in for each other must not go together


def test_layers_spare_and_biases(model, bench):
    made = Weights(target=Ratio(ratio=0.5), layers=["1"], biases=True).operate(deepcopy(model), bench)
    assert made.record["parameters"] == ["1.weight", "1.bias"]
    made = Weights(target=Ratio(ratio=0.5), spare=["4*"]).operate(deepcopy(model), bench)
    assert made.record["parameters"] == ["1.weight"]
    made = Weights(target=Ratio(ratio=0.5), layers=["*.weight"]).operate(deepcopy(model), bench)
    assert made.record["parameters"] == ["1.weight", "4.weight"]
    for options, message in (
        ({"layers": ["head"]}, r"no layer of Sequential is named by 'head'"),
        ({"layers": ["2"]}, r"'2' names '2.weight', which cannot be pruned: it has 1 dimension "),
        ({"layers": ["1.bias"]}, "biases are pruned only where biases: true"),
        ({"spare": ["1", "4"]}, "nothing to prune beside what spare names"),
    ):
        with pytest.raises(RecipeError, match=message):
            Weights(target=Ratio(ratio=0.5), **options).operate(model, bench)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    ],
    ids=["sgd", "nesterov", "adam", "amsgrad", "adamw", "rmsprop"],
)
def test_zeros_stay_zero_in_training(make, model, bench, data):
    made = Weights(target=Ratio(ratio=0.75)).operate(model, bench)
    zero = weights_of(model) == 0
    free = deepcopy(model)
    Weights.hold(model, json.loads(json.dumps(made.record)))
    for net in (model, free):
        net.train()
        optimizer = make(net.parameters())
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data[0]), data[1]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    assert torch.equal(weights_of(model) == 0, zero)
    assert (weights_of(free) != 0).all()  # which they would not have stayed


def test_a_gradient_of_nan_does_not_reach_a_zero(model, bench):
    made = Weights(target=Ratio(ratio=0.75)).operate(model, bench)
    Weights.hold(model, made.record)
    (model[1].weight * math.nan).sum().backward()
    assert torch.equal(model[1].weight.grad == 0, model[1].weight == 0)


def test_saved_and_rebuilt(model, bench, data):
    made = Weights(target=Ratio(ratio=0.5), steps=2, saliency={"kind": "obd", "examples": 24}).operate(model, bench)
    again = Weights.rebuild(fresh(), json.loads(json.dumps(made.record)))
    again.load_state_dict(load(save(made.model.state_dict())))
    assert torch.equal(again.eval()(data[0]), made.model(data[0]))
    with pytest.raises(ArtifactError, match=r"names 'layer9.weight', which Sequential has not"):
        Weights.rebuild(fresh(), {"parameters": ["layer9.weight"]})
    with pytest.raises(ArtifactError, match="damaged"):
        Weights.hold(fresh(), {})


def test_a_convolutional_net(bench):
    torch.manual_seed(0)
    net = LeNet((1, 4, 4), 3, width=0.5)
    made = Weights(target=Ratio(ratio=0.9), saliency="lamp").operate(net, bench)
    assert all(row["left"] > 0 for row in made.layers) and made.said == []
    assert made.metrics["sparsity"] == pytest.approx(0.9, abs=1e-3)
    made = Weights(target=Keep(keep=3)).operate(net, bench)
    assert any("nothing passes it" in line for line in made.said)


def test_an_error_leaves_the_model_as_it_was(model, bench, monkeypatch):
    surgery = Weights(target=Ratio(ratio=0.5), saliency="obs", steps=3)
    before, calls, compensate = weights_of(model), [], surgery.saliency.compensate

    def failing(*given):
        calls.append(1)
        compensate(*given)
        if len(calls) == 2:
            raise DataError("it went wrong")

    monkeypatch.setattr(surgery.saliency, "compensate", failing)
    with pytest.raises(DataError, match="it went wrong"):
        surgery.operate(model, bench)
    assert torch.equal(weights_of(model), before) and len(calls) == 2
    nn.init.constant_(model[4].weight, math.inf)
    with pytest.raises(DataError, match=r"'4.weight' holds weights that are not finite"):
        Weights(target=Ratio(ratio=0.5)).operate(model, bench)


def test_latency_is_refused_but_by_force():
    with pytest.raises(RecipeError, match=r"prune.channels.*force: true"):
        Weights(target=Ratio(ratio=0.5), aim="latency")
    Weights(target=Ratio(ratio=0.5), aim="latency", force=True)


def test_as_a_recipe_writes_it():
    made = build("compress", "weights", {"target": {"ratio": 0.9}, "saliency": {"kind": "obs", "block": 64}, "steps": "each"})
    assert isinstance(made, Held) and made.target == Ratio(ratio=0.9) and isinstance(made.saliency, Compensating)
    assert build("compress", "prune.weights", {"target": {"keep": 14}}).target == Keep(keep=14)
    assert find("compress", "prune.weights") is Weights
    for options, message in (
        ({}, "needs the option 'target'"),
        ({"target": {"ratio": 1.5}}, r"'target.ratio' of compress.prune.weights should be less than 1; given is 1.5"),
        ({"target": {"keep": 0}}, r"'target.keep' .* greater than or equal to 1"),
        ({"target": {"raito": 0.5}}, r"lacks 'ratio'"),
        ({"target": {"ratio": 0.5, "keep": 3}}, r"'keep'"),
        ({"target": 0.5}, "target"),
        ({"target": {"ratio": 0.5}, "scope": "net"}, r"'global' or 'layer' or 'row'"),
        ({"target": {"ratio": 0.5}, "steps": 0}, "1 or more, or each"),
        ({"target": {"ratio": 0.5}, "saliency": "obx"}, "did you mean"),
    ):
        with pytest.raises(RecipeError, match=message):
            build("compress", "prune.weights", options)


def test_how_many_are_left():
    assert weights_left(Ratio(ratio=0.9), 1000, 1000) == 100
    assert weights_left(Keep(keep=7), 1000, 8) == 7
    with pytest.raises(RecipeError, match=r"leaves none of 3 weights"):
        weights_left(Ratio(ratio=0.9), 3, 3)
    with pytest.raises(RecipeError, match=r"ratio: 0.5, which is 5 left, and only 4 of 10.*ratio above 0.6"):
        weights_left(Ratio(ratio=0.5), 10, 4)
    with pytest.raises(RecipeError, match="leave this model as it is"):
        weights_left(Keep(keep=3), 10, 1)
    assert apportion(5, [4, 4, 2]) == [2, 2, 1] and apportion(0, [3]) == [0] and apportion(7, [7]) == [7]
    assert all(sum(apportion(left, [5, 1, 9, 2])) == left for left in range(18))
    assert _between(torch.tensor([5, 3]), torch.tensor([1, 3]), 1, 4).tolist() == [4, 3]


def test_which_are_lowest_against_a_naive_loop():
    torch.manual_seed(0)
    weights = torch.randn(60).mul(torch.rand(60) > 0.3).double()
    cost, groups = torch.randint(0, 4, (60,)).double(), torch.randint(0, 3, (60,))
    left = torch.tensor([5, 0, 100]).minimum(groups.bincount())
    gone = lowest(cost, weights, groups, left)
    for group in range(3):
        mine = [index for index in range(60) if groups[index] == group]
        mine.sort(key=lambda index: (-math.inf if weights[index] == 0 else cost[index].item(), weights[index].abs().item(), index))
        assert {index for index in mine if gone[index]} == set(mine[: len(mine) - int(left[group])])
