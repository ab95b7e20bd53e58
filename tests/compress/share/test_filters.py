"""`share.filters`: similar filters become their mean, learn as one, and are stored once."""

import copy
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.compress import Bench, plain
from limbeck.compress.share._merge import merge
from limbeck.compress.share.filters import Filters
from limbeck.compress.share.kmeans import KMeans
from limbeck.compress.share.lbk import Lbk
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build


def _net() -> nn.Sequential:
    """Filters 0, 3 and 5 of the convolution are nearly alike, and zero in one place."""
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 40), nn.ReLU(), nn.Linear(40, 10))
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = 0.0
        net[0].weight[3] = net[0].weight[0] * 1.02
        net[0].weight[5] = net[0].weight[0] * 0.97
    return net.eval()


def _naive(rows: np.ndarray, distance: float, least: int) -> list[int]:
    """Merge by looking at the squared error itself, of every pair of groups."""
    groups = [[i] for i in range(len(rows))]
    norm = np.sqrt((rows**2).sum(1).mean())

    def error(group: list[int]) -> float:
        return float(((rows[group] - rows[group].mean(0)) ** 2).sum())

    while len(groups) > least:
        added, a, b = min((error(a + b) - error(a) - error(b), a, b) for a, b in combinations(groups, 2))
        if np.sqrt(2 * max(added, 0.0)) / norm > distance:
            break
        groups = sorted([group for group in groups if group not in (a, b)] + [sorted(a + b)])
    return [next(place for place, group in enumerate(groups) if row in group) for row in range(len(rows))]


@pytest.mark.parametrize("seed", range(12))
def test_pairs_merge_by_what_they_add_to_the_squared_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, 3)) + 4 * rng.integers(0, 2, (12, 1))
    assert merge(rows, least=4).tolist() == _naive(rows, np.inf, 4)
    assert merge(rows, distance=0.4).tolist() == _naive(rows, 0.4, 1)


def test_merging_ends_in_one_group_and_needs_no_two_rows() -> None:
    assert merge(np.random.default_rng(0).normal(size=(9, 2))).tolist() == [0] * 9
    assert merge(np.zeros((1, 3))).tolist() == [0]
    assert merge(np.zeros((3, 2)), distance=0.0).tolist() == [0, 0, 0]


def test_similar_filters_become_their_mean_and_others_stay(bench: Bench) -> None:
    net = _net()
    before = net[0].weight.detach().clone()
    done = build("compress", "share.filters", {"target": {"distance": 0.1}}).operate(net, bench)
    weight = done.model[0].weight
    for i in (0, 3, 5):
        assert torch.allclose(weight[i], before[[0, 3, 5]].mean(0), atol=1e-7)
    for i in (1, 2, 4, 6, 7):
        assert torch.equal(weight[i], before[i])
    assert [row["name"] for row in done.layers] == ["0.weight"]
    row = done.layers[0]
    assert (row["filters"], row["left"], row["weights"], row["weights_left"]) == (8, 6, 144, 108)
    assert row["relative_error"] == pytest.approx(((weight - before).norm() / before.norm()).item(), rel=1e-4)
    assert done.metrics == {"filters": 8, "filters_left": 6}
    assert any(line.startswith("5 is left as it is: its rows are the answers") for line in done.said)


def test_merged_filters_learn_by_the_sum_of_their_gradients_and_zeros_do_not(bench: Bench) -> None:
    model = Filters(target={"distance": 0.1}).operate(_net(), bench).model
    loose, x = plain(model), torch.randn(4, 2, 8, 8)
    for one in (model, loose):
        one(x).square().sum().backward()
    rows = model[0].parametrizations["weight"]
    gradient = loose[0].weight.grad.clone()
    gradient[:, 0, 0, 0] = 0.0
    expected = torch.zeros(6, *gradient.shape[1:]).index_add_(0, rows[0].index, gradient)
    assert torch.allclose(rows.original.grad, expected, rtol=1e-4, atol=1e-5)
    torch.optim.Adam(model.parameters(), lr=0.1).step()
    made = plain(model)[0].weight
    assert torch.equal(made[0], made[3])
    assert torch.equal(made[0], made[5])
    assert not made[:, 0, 0, 0].any()


def test_a_share_of_each_layers_filters_is_left(bench: Bench) -> None:
    done = Filters(target={"share": 0.25}, layers=["0", "5"]).operate(_net(), bench)
    assert [(row["name"], row["left"]) for row in done.layers] == [("0.weight", 2), ("5.weight", 2)]
    assert len(done.model[5].weight.unique(dim=0)) == 2


def test_it_is_the_same_model_after_a_round_trip_and_under_weight_sharing(bench: Bench, tmp_path: Path) -> None:
    done = Filters(target={"share": 0.5}).operate(_net(), bench)
    again = Filters.rebuild(_net(), json.loads(json.dumps(done.record)))
    again.load_state_dict(done.model.state_dict())
    x = torch.randn(3, 2, 8, 8)
    for one in (again, copy.deepcopy(done.model), plain(done.model)):
        assert torch.equal(one(x), done.model(x))
    shared = KMeans(bits=3).operate(copy.deepcopy(done.model), bench)
    twice = KMeans.rebuild(Filters.rebuild(_net(), done.record), shared.record)
    twice.load_state_dict(shared.model.state_dict())
    assert torch.equal(twice(x), shared.model(x))
    assert len(shared.model[3].weight.unique(dim=0)) == 20


def test_a_filter_that_occurs_twice_is_stored_once(bench: Bench, tmp_path: Path) -> None:
    net = _net()
    whole = Lbk().pack(net, tmp_path / "whole.lbk")["layers"]
    made = plain(Filters(target={"share": 0.5}).operate(net, bench).model)
    half = Lbk().pack(made, tmp_path / "half.lbk")["layers"]
    for name in ("0.weight", "3.weight"):
        sizes = [next(row["bytes"] for row in rows if row["name"] == name) for rows in (whole, half)]
        assert sizes[1] < 0.55 * sizes[0]
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in Lbk.unpack(tmp_path / "half.lbk").items())


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({}, "target is {}"),
        ({"share": 0.5, "distance": 1.0}, "it is one of"),
        ({"share": 1.0}, "share is 1; it is above 0 and below 1"),
        ({"distance": -1.0}, "distance is -1"),
    ],
)
def test_what_cannot_be_meant_is_refused(target: dict[str, float], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        build("compress", "share.filters", {"target": target})


def test_what_cannot_be_merged_is_said(bench: Bench) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    with pytest.raises(MismatchError, match=r"no two filters are merged by \{distance: 0.5\}: the nearest two are 1.41 apart"):
        Filters(target={"distance": 0.5}).operate(net, bench)
    with pytest.raises(MismatchError, match="Sequential has no layer but the last"):
        Filters(target={"distance": 0.5}).operate(nn.Sequential(nn.Linear(2, 2)), bench)
    with torch.no_grad():
        net[0].weight[0, 0] = float("inf")
    with pytest.raises(MismatchError, match="not finite"):
        Filters(target={"distance": 0.5}).operate(net, bench)
