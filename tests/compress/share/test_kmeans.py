"""`share.kmeans`: every weight its cluster's centroid, which learns by the sum of its members' gradients."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from limbeck.compress import Bench, plain
from limbeck.compress.share._cluster import cost as cost_of
from limbeck.compress.share._cluster import optimum
from limbeck.compress.share.kmeans import KMeans
from limbeck.core.errors import LimbeckError, MismatchError, RecipeError
from limbeck.core.lookup import build


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.layer2 = nn.Linear(384, 20)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(x)).relu())


def _pruned() -> _Net:
    net = _Net().eval()
    with torch.no_grad():
        net.layer2.weight[net.layer2.weight.abs() < 0.03] = 0.0
    return net


def _codebook(module: nn.Module, name: str = "weight") -> nn.Parameter:
    return module.parametrizations[name].original  # pyright: ignore[reportIndexIssue]


def test_each_layer_has_its_own_few_numbers_and_zeros_stay_zero(bench: Bench) -> None:
    net = _pruned()
    before = copy.deepcopy(net)
    done = KMeans(bits=3).operate(net, bench)
    for old, new in ((before.layer1[0], done.model.layer1[0]), (before.layer2, done.model.layer2), (before.head, done.model.head)):
        assert len(new.weight[new.weight != 0].unique()) == 8
        assert torch.equal(new.weight == 0, old.weight == 0)
        assert torch.equal(new.bias, old.bias)
    rows = {row["name"]: row for row in done.layers}
    off = (done.model.layer2.weight - before.layer2.weight).norm() / before.layer2.weight.norm()
    assert rows["layer2.weight"]["relative_error"] == pytest.approx(off.item(), rel=1e-4)
    assert rows["layer2.weight"]["nonzero"] == int(before.layer2.weight.count_nonzero())
    assert done.metrics == {"shared_weights": 54 + 7680 + 200, "centroids": 24}
    assert not KMeans.lasts


def test_a_centroids_gradient_is_the_sum_of_its_members(bench: Bench) -> None:
    model = KMeans(bits=2).operate(_pruned(), bench).model
    loose, x = plain(model), torch.randn(16, 1, 8, 8)
    for one in (model, loose):
        one(x).square().sum().backward()
    for path in ("layer1.0", "layer2", "head"):
        module, gradient = model.get_submodule(path), loose.get_parameter(f"{path}.weight").grad
        codebook, weight = _codebook(module), module.weight.detach()
        assert gradient is not None
        expected = torch.stack([gradient[weight == value].sum() for value in codebook.detach()])
        assert codebook.grad is not None
        assert torch.allclose(codebook.grad, expected, rtol=1e-4, atol=1e-4)
    assert len(_codebook(model.layer2)) == 4, "zero is no centroid, and learns nothing"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_training_moves_the_centroids_and_keeps_what_is_shared(optimizer: type[torch.optim.Optimizer], bench: Bench) -> None:
    model = KMeans(bits=2, biases=2).operate(_pruned(), bench).model.train()
    before = plain(model)
    steps = optimizer(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        steps.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 1, 8, 8)), torch.randint(10, (16,))).backward()
        steps.step()
    after = plain(model)
    for name, old in before.named_parameters():
        new = after.get_parameter(name)
        if name.startswith("layer1.1"):
            continue
        assert not torch.equal(new, old)
        assert torch.equal(new == 0, old == 0)
        for value in old.unique():
            assert len(new[old == value].unique()) == 1, name


def test_it_is_the_same_model_after_a_round_trip(bench: Bench, tmp_path: Path) -> None:
    done = KMeans(bits={"layer1": 3, "layer2": 9}, biases=1).operate(_pruned(), bench)
    record = json.loads(json.dumps(done.record))
    torch.manual_seed(9)
    again = KMeans.rebuild(_Net().eval(), record)
    again.load_state_dict(done.model.state_dict())
    x = torch.randn(4, 1, 8, 8)
    for one in (again, copy.deepcopy(done.model), plain(done.model)):
        assert torch.equal(one(x), done.model(x))
    assert again.state_dict()["layer1.0.parametrizations.weight.0.index"].dtype == torch.uint8
    assert again.state_dict()["layer2.parametrizations.weight.0.index"].dtype == torch.int16
    plain(again).load_state_dict(plain(done.model).state_dict())


def test_bits_by_path_leave_other_layers_alone(bench: Bench) -> None:
    net = _pruned()
    done = KMeans(bits={"layer1": 2, "layer1.0": 3}).operate(net, bench)
    assert len(done.model.layer1[0].weight.unique()) == 8
    assert not parametrize.is_parametrized(done.model.layer2)
    assert any("7,880 weights are not shared: layer2.weight, head.weight" in line for line in done.said)


@pytest.mark.parametrize("init", ["linear", "density", "random", "exact"])
def test_every_init_is_deterministic_and_exact_is_the_least_error(init: str, bench: Bench) -> None:
    net = _pruned()
    runs = [build("compress", "share.kmeans", {"bits": 3, "init": init}).operate(copy.deepcopy(net), bench) for _ in range(2)]
    assert runs[0].layers == runs[1].layers
    assert all(torch.equal(a, b) for a, b in zip(runs[0].model.state_dict().values(), runs[1].model.state_dict().values(), strict=True))
    least = KMeans(bits=3, init="exact").operate(copy.deepcopy(net), bench)
    for row, best in zip(runs[0].layers, least.layers, strict=True):
        assert row["relative_error"] >= best["relative_error"] - 1e-7


def test_it_shares_again_what_is_shared(bench: Bench) -> None:
    fine = KMeans(bits=6).operate(_pruned(), bench)
    coarse = KMeans(bits=2).operate(fine.model, bench)
    assert len(coarse.model.layer2.weight.unique()) == 5
    again = KMeans.rebuild(KMeans.rebuild(_Net().eval(), fine.record), coarse.record)
    again.load_state_dict(coarse.model.state_dict())
    assert torch.equal(again.layer2.weight, coarse.model.layer2.weight)


def test_curvature_weighs_the_distance(bench: Bench) -> None:
    """By Optimal Brain Damage's 1/2 h w^2: weights of a large h are moved less, and sum_i h_i (w_i - c(w_i))^2 is the least there is."""
    net = nn.Sequential(_Uneven(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight[:, ::2].mul_(0.1)  # of the large inputs
    weight, curved = net[1].weight.detach().double(), _curvature(net, bench)

    def cost(method: KMeans) -> float:
        moved = plain(method.operate(copy.deepcopy(net), bench).model).get_parameter("1.weight").detach().double()
        return (curved * (moved - weight) ** 2).sum().item()

    weighed = cost(KMeans(bits=2, init="exact", curvature={"kind": "obd", "examples": 500}))
    assert weighed < 0.7 * cost(KMeans(bits=2, init="exact"))
    assert weighed == pytest.approx(_least(weight, curved, 4), rel=0.01)


class _Uneven(nn.Module):
    """Every other pixel ten times as large."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * torch.tensor([10.0, 1.0] * 32)


def _curvature(net: nn.Module, bench: Bench) -> Tensor:
    told = build("compress", "prune.saliency.obd", {"examples": 500}).contributions(net, ["1.weight"], bench)["1.weight"].double()
    return 2 * told / net.get_parameter("1.weight").detach().double() ** 2


def _least(weight: Tensor, curved: Tensor, k: int) -> float:
    x, w = weight.flatten().numpy(), curved.flatten().numpy()
    return cost_of(x, optimum(x, k, weights=w), w)


def test_few_distinct_numbers_are_left_as_they_are(bench: Bench) -> None:
    net = nn.Sequential(nn.Linear(4, 1), nn.Linear(30, 30))
    done = KMeans(bits=2, biases=3).operate(net, bench)
    assert [row["name"] for row in done.layers] == ["1.weight", "1.bias"]
    assert any(line.startswith("0.weight is left as it is: its 4 distinct numbers are no more than 2^2") for line in done.said)
    with pytest.raises(MismatchError, match="nothing is to be shared"):
        KMeans(bits=14).operate(_pruned(), bench)


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 30))
    net[2].weight = net[0].weight
    return net


def test_tied_weights_are_left_tied(bench: Bench) -> None:
    done = KMeans(bits=2).operate(_tied(), bench)
    assert [row["name"] for row in done.layers] == ["1.weight"]
    assert "0.weight is left as it is: it is the same weight as 2.weight" in done.said
    with pytest.raises(MismatchError, match=r"2\.weight is the same weight as 0\.weight"):
        KMeans(bits={"2": 2}).operate(_tied(), bench)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 0}, "bits is 0; an index has 1 to 14 bits"),
        ({"bits": {"head": 15}}, "head is 15; an index has"),
        ({"bits": {}}, "bits names no layer"),
        ({"biases": -1}, "biases is -1"),
        ({"init": "middle"}, "init"),
        ({"curvature": "magnitude"}, "curvature is 'magnitude'; it is obd or fisher"),
        ({"curvature": {"examples": 3}}, "curvature is None"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        build("compress", "share.kmeans", options)


def _not_finite() -> nn.Module:
    net = _pruned()
    with torch.no_grad():
        net.head.weight[0, 0] = float("nan")
    return net


def test_what_cannot_be_shared_is_named_and_the_model_is_as_it_was(bench: Bench) -> None:
    cases: list[tuple[nn.Module, KMeans, type[LimbeckError], str]] = [
        (_pruned(), KMeans(bits={"layer9": 2}), MismatchError, "layer9 has no linear, .*: it has layer1.0, layer2, head"),
        (nn.ReLU(), KMeans(), MismatchError, "ReLU has no linear"),
        (_not_finite(), KMeans(), MismatchError, "head.weight holds numbers that are not finite"),
        (weight_norm(nn.Linear(9, 9)), KMeans(), MismatchError, r"weight is computed by _WeightNorm, for training: finish that first \(prune.finish"),
        (nn.Linear(1000, 2000), KMeans(bits=5, init="exact"), RecipeError, "exact does .* take linear"),
    ]
    for net, method, error, told in cases:
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(error, match=told):
            method.operate(net, bench)
        assert net.state_dict().keys() == before.keys()
        assert all(
            torch.equal(
                value,
                before[name],
            )
            or value.isnan().any()
            for name, value in net.state_dict().items()
        )
