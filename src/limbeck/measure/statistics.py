"""How sure a figure is: intervals of proportions, means and ratios, and the test of two classifiers on the same examples.

N examples, n pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from limbeck.core.errors import DataError, MismatchError

__all__ = ["Interval", "McNemar", "Ratio", "bootstrap_ratio", "by_rows", "holm", "mcnemar", "paired_p", "paired_t", "wilson"]


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values between `low` and `high`."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same examples: how many only one of them got right, and accuracy of a minus accuracy of b between `low` and `high`."""

    a_only: int
    b_only: int
    p: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians over `n` paired rounds between `low` and `high`."""

    ratio: float
    low: float
    high: float
    n: int


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise MismatchError(f"confidence {confidence} must lie between 0 and 1, as 0.95 does")
    return confidence


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = successes / n, z the normal quantile.
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927; without continuity correction.

    Raises:
        DataError: n of zero, or successes not among 0 .. n.

    >>> low, high = wilson(81, 263)
    >>> round(low, 4), round(high, 4)
    (0.2553, 0.3662)
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} examples have no interval: at least one example is needed, and successes among 0 .. n")
    z = NormalDist().inv_cdf((1 + _confidence(confidence)) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else (centre - reach) / (1 + z * z / n)
    high = 1.0 if successes == n else (centre + reach) / (1 + z * z / n)
    return low, high


def _finite(name: str, values: ArrayLike, least: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise DataError(f"{name} must be a row of at least {least} numbers, not of shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite: an interval over them means nothing")
    return array


def paired_t(differences: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return Student's interval of the mean of paired differences `[n]`: mean -+ t(n-1) s / sqrt(n).

    Raises:
        DataError: fewer than two differences, or one that is not finite.

    >>> found = paired_t([1.0, 2.0, 3.0])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.n
    (2.0, -0.484, 4.484, 3)
    """
    from scipy.special import stdtrit

    values = _finite("differences", differences, 2)
    mean, n = float(values.mean()), len(values)
    reach = float(stdtrit(n - 1, (1 + _confidence(confidence)) / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, n)


def by_rows(sums: ArrayLike, counts: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of predictions that come in rows, m = sum s_i / sum n_i, with Student's interval of rows that are drawn and predictions that are not.

    m -+ t(M-1) sqrt(M / (M-1) sum (s_i - m n_i)^2) / sum n_i for `sums` s and `counts` n `[M]`, the ratio estimator's (Cochran, "Sampling Techniques",
    3rd ed. 1977, eq. 6.13); for two models on the same rows s is the difference of theirs.

    Raises:
        DataError: fewer than two rows, a number that is not finite, or no prediction at all.

    >>> found = by_rows([1.0, 2.0, 3.0], [1, 1, 1])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.n
    (2.0, -0.484, 4.484, 3)
    """
    from scipy.special import stdtrit

    s, n = _finite("sums", sums, 2), _finite("counts", counts, 2)
    if not n.sum() > 0:
        raise DataError("there is no prediction in these rows: nothing can be averaged")
    mean, rows = float(s.sum() / n.sum()), len(s)
    spread = math.sqrt(rows / (rows - 1) * float(((s - mean * n) ** 2).sum())) / float(n.sum())
    reach = float(stdtrit(rows - 1, (1 + _confidence(confidence)) / 2)) * spread
    return Interval(mean, mean - reach, mean + reach, rows)


def paired_p(differences: ArrayLike) -> float:
    """Return the two-sided p of Student's paired test that the mean of the differences `[n]` is zero: 2 P(T(n-1) > |mean| sqrt(n) / s).

    One where all differences are zero, zero where they are all alike otherwise.

    Raises:
        DataError: fewer than two differences, or one that is not finite.

    >>> round(paired_p([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    from scipy.special import stdtr

    values = _finite("differences", differences, 2)
    mean, n, spread = abs(float(values.mean())), len(values), float(values.std(ddof=1))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stdtr(n - 1, -mean * math.sqrt(n) / spread))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for there being several, in the order given: max over the smaller ones of (m - rank) p, at most 1.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def _yes_or_no(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} must be a row of at least one true or false, not of shape {list(array.shape)}")
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"{name} must hold true or false (right or wrong) for each example")
    return array.astype(bool)


def _paired_difference(both: int, a_only: int, b_only: int, neither: int, confidence: float) -> tuple[float, float]:
    """Newcombe's method 10: Wilson's limits of both proportions, squared and added with the continuity-corrected correlation phi."""
    n = both + a_only + b_only + neither
    a_right, b_right = both + a_only, both + b_only
    (a_low, a_high), (b_low, b_high) = wilson(a_right, n, confidence), wilson(b_right, n, confidence)
    a, b = a_right / n, b_right / n
    cross = both * neither - a_only * b_only
    margins = a_right * (n - a_right) * b_right * (n - b_right)
    corrected = max(cross - n / 2, 0) if cross > 0 else cross
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(of_a: float, of_b: float) -> float:
        return math.sqrt(max(of_a**2 - 2 * phi * of_a * of_b + of_b**2, 0.0))

    difference = (a_only - b_only) / n
    return difference - reach(a - a_low, b_high - b), difference + reach(a_high - a, b - b_low)


def mcnemar(a_correct: ArrayLike, b_correct: ArrayLike, confidence: float = 0.95) -> McNemar:
    """Compare two classifiers on the same examples: McNemar's exact test, and the interval of the difference of their accuracies.

    p = min(1, 2 P(X <= min(a_only, b_only))), X binomial(a_only + b_only, 1/2): the exact conditional test, whatever the number of discordant pairs.
    McNemar, Psychometrika 12, 1947. The interval of accuracy(a) - accuracy(b) is method 10 of Newcombe, "Improved confidence intervals for the
    difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998; being of another make than the test,
    it may barely leave out zero where p is barely above 0.05, or the other way round.

    Args:
        a_correct: whether a was right, `[N]`.
        b_correct: whether b was right on the same examples in the same order, `[N]`.
        confidence: of the interval.

    Raises:
        MismatchError: not the same number of examples.
        DataError: none at all, or values other than true and false.

    >>> found = mcnemar([1, 1, 1, 1, 0], [1, 0, 0, 0, 0])
    >>> found.a_only, found.b_only, found.p
    (3, 0, 0.25)
    """
    from scipy.special import bdtr

    a, b = _yes_or_no("a_correct", a_correct), _yes_or_no("b_correct", b_correct)
    if len(a) != len(b):
        raise MismatchError(f"a was scored on {len(a)} examples and b on {len(b)}: McNemar's test needs the same ones in the same order")
    both, a_only, b_only, neither = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())
    discordant = a_only + b_only
    p = min(1.0, 2 * float(bdtr(float(min(a_only, b_only)), discordant, 0.5))) if discordant else 1.0
    low, high = _paired_difference(both, a_only, b_only, neither, confidence)
    return McNemar(a_only, b_only, p, (a_only - b_only) / len(a), low, high)


def bootstrap_ratio(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = 2000, confidence: float = 0.95) -> Ratio:
    """Return median(a) / median(b) with the percentile bootstrap interval, paired rounds `[n]` resampled jointly.

    What slows both sides of a round (a clock, a neighbour) stays paired in every draw and so cancels.
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Raises:
        MismatchError: a and b of different lengths.
        DataError: fewer than two rounds, or a value that is not finite or not above zero.

    >>> bootstrap_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Ratio(ratio=2.0, low=2.0, high=2.0, n=3)
    """
    above, below = _finite("a", a, 2), _finite("b", b, 2)
    if len(above) != len(below):
        raise MismatchError(f"a has {len(above)} rounds and b has {len(below)}: a paired ratio needs the same rounds of both")
    if min(above.min(), below.min()) <= 0:
        raise DataError("a ratio needs values above zero on both sides")
    if draws < 1:
        raise MismatchError(f"draws {draws} must be at least 1")
    tail = (1 - _confidence(confidence)) / 2
    rounds = np.random.default_rng(seed).integers(0, len(above), (draws, len(above)))  # [draws, n]
    ratios = np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1)
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Ratio(float(np.median(above) / np.median(below)), float(low), float(high), len(above))
