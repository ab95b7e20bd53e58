"""Numbers on a line in k clusters, each of which stands for its members by their mean: k-means, and its optimum.

n numbers `values [n]`, their weights `[n]`, k centroids ascending `[k]`; all float64. The cost is sum_i w_i (x_i - c(x_i))^2.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["INITS", "MOST_EXACT", "Init", "assign", "cost", "kmeans", "optimum"]

Line = NDArray[np.float64]
Whole = NDArray[np.int64]
Init = Literal["linear", "density", "random"]
INITS: tuple[Init, ...] = ("linear", "density", "random")

MOST_EXACT = 1 << 23
"""The most distinct numbers times clusters whose optimum is looked for."""

_ROUNDS = 1000


class _Sums:
    """Sums over the distinct numbers, ascending, so that what a run of them costs is a difference."""

    def __init__(self, values: Line, weights: Line | None) -> None:
        self.x, place = np.unique(values, return_inverse=True)
        self.w = np.bincount(place, weights, len(self.x)).astype(np.float64)
        self.middle = float(np.average(self.x, weights=self.w))
        near = self.x - self.middle  # a difference of squares far from zero would have no digits left
        self.s0, self.s1, self.s2 = (np.concatenate([[0.0], np.cumsum(self.w * near**power)]) for power in range(3))

    def means(self, cuts: Whole) -> Line:
        """The mean of each run between the cuts `[k + 1]`, none of which is empty."""
        return np.diff(self.s1[cuts]) / np.diff(self.s0[cuts]) + self.middle

    def cost(self, begin: Whole, end: Whole) -> Line:
        """What each run `[begin, end)`, none of which is empty, costs."""
        s0, s1, s2 = (sums[end] - sums[begin] for sums in (self.s0, self.s1, self.s2))
        return np.maximum(s2 - s1 * s1 / s0, 0.0)


def assign(values: Line, centroids: Line) -> Whole:
    """Return the nearest centroid of each number, of two that are equally near the lower: `[n]`."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="left")


def cost(values: Line, centroids: Line, weights: Line | None = None) -> float:
    """Return sum_i w_i (x_i - c(x_i))^2.

    >>> cost(np.array([0.0, 1.0, 5.0]), np.array([0.5, 5.0]))
    0.5
    """
    off = (values - centroids[assign(values, centroids)]) ** 2
    return float(off.sum() if weights is None else off @ weights)


def _start(line: _Sums, k: int, init: Init, seed: int) -> Line:
    """Where k-means begins: Han et al. 2016, arXiv:1510.00149, section 3.2: evenly over the range; evenly over the distribution; at k of the numbers."""
    if init == "linear":
        return np.linspace(line.x[0], line.x[-1], k)
    if init == "density":
        shares = (np.arange(k) + 0.5) / k * line.s0[-1]
        return line.x[np.searchsorted(line.s0[1:], shares).clip(max=len(line.x) - 1)]
    return line.x[np.sort(np.random.default_rng(seed).choice(len(line.x), k, replace=False))]


def kmeans(values: Line, k: int, *, init: Init = "linear", weights: Line | None = None, seed: int = 0) -> Line:
    """Return the centroids of Lloyd's algorithm, run until nothing moves; the distinct numbers themselves where there are k or fewer.

    A cluster that is left without members begins again at the number that is farthest from its centroid (by what it costs).

    >>> kmeans(np.array([0.0, 1.0, 5.0, 7.0]), 2).tolist()
    [0.5, 6.0]
    """
    line = _Sums(values, weights)
    if len(line.x) <= k:
        return line.x
    centroids, before = np.unique(_start(line, k, init, seed)), None
    for _ in range(_ROUNDS):
        index = assign(line.x, centroids)
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(index)) + 1, [len(line.x)]])
        centroids, lacking = line.means(cuts), k - (len(cuts) - 1)
        if lacking:
            far = line.w * (line.x - np.repeat(centroids, np.diff(cuts))) ** 2
            centroids = np.unique(np.concatenate([centroids, line.x[np.argsort(-far, kind="stable")[:lacking]]]))
        elif before is not None and np.array_equal(before, cuts):
            break
        before = cuts
    return centroids


def optimum(values: Line, k: int, *, weights: Line | None = None) -> Line:
    """Return the centroids of least cost: dynamic programming over where clusters end, O(k n log n).

    With D_j(i) the least cost of the i lowest numbers in j clusters, D_j(i) = min_m D_{j-1}(m) + cost(m, i), and the best m does not fall as i rises: Wang and
    Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming", The R Journal 2011; Groenlund et al., "Fast Exact k-Means,
    k-Medians and Bregman Divergence Clustering in 1D", 2017, arXiv:1701.07204.

    >>> optimum(np.array([0.0, 1.0, 5.0, 7.0, 7.5]), 2).tolist()
    [0.5, 6.5]
    """
    line = _Sums(values, weights)
    n = len(line.x)
    if n <= k:
        return line.x
    ends = np.arange(1, n + 1)
    best = np.concatenate([[0.0], line.cost(np.zeros(n, np.int64), ends)])
    splits: list[Whole] = []
    for _ in range(k - 1):
        best, split = _next(line, best)
        splits.append(split)
    cuts = [n]
    for split in reversed(splits):
        cuts.append(int(split[cuts[-1]]))
    return line.means(np.array([0, *reversed(cuts)]))


def _next(line: _Sums, best: Line) -> tuple[Line, Whole]:
    """Return D_j and the best m of each i, of D_{j-1}: halves of halves, each half's m between those of its ends, all of a depth at once."""
    n = len(best) - 1
    least, split = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
    stride = 1 << n.bit_length()
    while stride:
        i = np.arange(stride, n + 1, 2 * stride)
        if len(i):
            low = split[i - stride]
            high = np.where(i + stride <= n, np.maximum(split[np.minimum(i + stride, n)], low), i - 1)
            spans = np.minimum(high, i - 1) - low + 1
            begins = np.cumsum(spans) - spans
            m = np.arange(int(spans.sum())) + np.repeat(low - begins, spans)
            costs = best[m] + line.cost(m, np.repeat(i, spans))
            least[i] = np.minimum.reduceat(costs, begins)
            hits = np.flatnonzero(costs == np.repeat(least[i], spans))
            split[i] = m[hits[np.searchsorted(hits, begins)]]
        stride //= 2
    return least, split
