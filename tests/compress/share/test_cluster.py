"""k-means on a line: against every way to cut it, and against Lloyd's algorithm as it is written down."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from limbeck.compress.share._cluster import INITS, Init, assign, cost, kmeans, optimum


def least_cost(values: np.ndarray, weights: np.ndarray, k: int) -> float:
    """Try every partition of the distinct numbers into runs."""
    x = np.unique(values)
    w = np.array([weights[values == one].sum() for one in x])
    best = np.inf
    for cut in combinations(range(1, len(x)), min(k, len(x)) - 1):
        total = 0.0
        for a, b in pairwise((0, *cut, len(x))):
            total += (w[a:b] * (x[a:b] - np.average(x[a:b], weights=w[a:b])) ** 2).sum()
        best = min(best, total)
    return best


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    return rng.normal(size=n).round(1) + 1000.0, rng.random(n) + 0.01, int(rng.integers(1, n + 1))


@pytest.mark.parametrize("seed", range(60))
def test_the_optimum_is_the_least_of_all_partitions_and_kmeans_is_never_below(seed: int) -> None:
    values, weights, k = drawn(seed)
    for w in (None, weights):
        least = least_cost(values, np.ones(len(values)) if w is None else w, k)
        assert cost(values, optimum(values, k, weights=w), w) == pytest.approx(least, abs=1e-7)
        for init in INITS:
            assert cost(values, kmeans(values, k, init=init, weights=w, seed=seed), w) >= least - 1e-7


@pytest.mark.parametrize("init", INITS)
def test_kmeans_ends_where_nothing_moves(init: Init) -> None:
    values = np.random.default_rng(1).normal(size=3000)
    centroids = kmeans(values, 16, init=init, seed=5)
    assert len(centroids) == 16
    index = np.abs(values[:, None] - centroids).argmin(1)
    assert np.array_equal(index, assign(values, centroids))
    assert np.allclose(centroids, [values[index == k].mean() for k in range(16)])


def test_kmeans_is_lloyds_algorithm_from_the_same_start() -> None:
    values = np.random.default_rng(2).uniform(size=500)
    naive = np.linspace(values.min(), values.max(), 6)
    for _ in range(500):
        index = np.abs(values[:, None] - naive).argmin(1)
        naive = np.array([values[index == k].mean() for k in range(6)])
    assert np.allclose(kmeans(values, 6), naive)


def test_a_large_optimum_is_no_worse_than_any_start_and_better_than_most() -> None:
    values = np.random.default_rng(3).standard_t(3, size=4000)
    least = cost(values, optimum(values, 16))
    costs = [cost(values, kmeans(values, 16, init=init, seed=seed)) for init in INITS for seed in range(3)]
    assert least <= min(costs) + 1e-9
    assert least < max(costs) * 0.98


def test_a_weight_of_two_is_the_number_twice() -> None:
    values, weights = np.array([0.0, 1.0, 5.0, 7.0, 7.5]), np.array([1.0, 2.0, 1.0, 2.0, 1.0])
    twice = np.repeat(values, weights.astype(int))
    assert np.allclose(kmeans(values, 2, weights=weights), kmeans(twice, 2))
    assert np.allclose(optimum(values, 2, weights=weights), optimum(twice, 2))


def test_clusters_left_empty_begin_again() -> None:
    values = np.array([0.0, 0.1, 0.2, 0.3, 100.0])  # evenly spread centroids leave all but two empty
    assert len(kmeans(values, 4)) == 4
    assert cost(values, kmeans(values, 4)) <= 0.0050001


def test_few_distinct_numbers_are_their_own_centroids() -> None:
    values = np.array([2.0, -1.0, 2.0])
    assert kmeans(values, 5).tolist() == optimum(values, 5).tolist() == [-1.0, 2.0]


def test_the_order_of_numbers_is_of_no_matter() -> None:
    values = np.random.default_rng(4).normal(size=200)
    assert np.array_equal(kmeans(values, 8, init="random", seed=1), kmeans(values[::-1], 8, init="random", seed=1))
