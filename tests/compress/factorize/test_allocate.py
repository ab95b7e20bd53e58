"""The budget's distribution against every possible one."""

import itertools

import pytest
import torch

from limbeck.compress.factorize._allocate import Choices, allocate, hull
from limbeck.compress.factorize._vbmf import vbmf_rank


def choices(seed: int, convex: bool) -> list[Choices]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(3):
        cost = (torch.rand(5, generator=draw) + 0.05).cumsum(0)
        falls = torch.rand(4, generator=draw)
        falls = (falls * cost.diff() if not convex else falls.sort(descending=True).values * cost.diff()).double()
        loss = torch.cat([torch.zeros(1), falls.flip(0).cumsum(0)]).flip(0)
        made.append(Choices(cost.double(), loss))
    return made


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_on_the_hulls_of_its_cost_or_less_loses_less(seed: int) -> None:
    layers = choices(seed, convex=True)
    total = sum(float(layer.cost[-1]) for layer in layers)
    for share in (0.4, 0.6, 0.9, 1.0):
        found = allocate(layers, share * total)
        every = list(itertools.product(range(5), repeat=3))

        def cost(at: tuple[int, ...]) -> float:
            return sum(float(layer.cost[one]) for layer, one in zip(layers, at, strict=True))

        def loss(at: tuple[int, ...]) -> float:
            return sum(float(layer.loss[one]) for layer, one in zip(layers, at, strict=True))

        assert found is not None and cost(tuple(found)) <= share * total + 1e-9
        if share == 1.0:
            assert found == [4, 4, 4]
        best = min(loss(at) for at in every if cost(at) <= share * total)
        steps = [float(layer.loss[a] - layer.loss[a + 1]) for layer in layers for a in range(4)]
        assert loss(tuple(found)) <= best + max(steps)  # the last step is whole: within one step of the best


def test_the_hull_is_convex_and_below_all_points() -> None:
    for seed in range(5):
        for layer in choices(seed, convex=False):
            found = hull(layer.cost, layer.loss)
            slopes = [float((layer.loss[b] - layer.loss[a]) / (layer.cost[b] - layer.cost[a])) for a, b in itertools.pairwise(found)]
            assert slopes == sorted(slopes) and all(slope < 0 for slope in slopes)
            assert found[0] == 0 and found[-1] == 4


def test_less_than_the_cheapest_is_refused() -> None:
    layers = choices(0, convex=True)
    least = sum(float(layer.cost[0]) for layer in layers)
    assert allocate(layers, least * 0.99) is None
    assert allocate(layers, least) == [0, 0, 0]


@pytest.mark.parametrize(("shape", "rank", "noise"), [((40, 60), 4, 0.3), ((60, 40), 7, 0.5), ((30, 200), 3, 1.0), ((25, 25), 2, 0.0)])
def test_variational_bayes_finds_a_planted_rank(shape: tuple[int, int], rank: int, noise: float) -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape[0], rank, generator=draw) @ torch.randn(rank, shape[1], generator=draw)
    assert vbmf_rank(matrix + noise * torch.randn(shape, generator=draw)) == rank


def test_variational_bayes_finds_nothing_in_noise() -> None:
    assert vbmf_rank(torch.randn(50, 80, generator=torch.Generator().manual_seed(0))) == 0
    assert vbmf_rank(torch.zeros(5, 5)) == 0
