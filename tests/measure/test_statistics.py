import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from limbeck.core.errors import DataError, MismatchError
from limbeck.measure.statistics import bootstrap_ratio, mcnemar, paired_t, wilson


def pairs(both: int, a_only: int, b_only: int, neither: int) -> tuple[list[int], list[int]]:
    return [1] * both + [1] * a_only + [0] * b_only + [0] * neither, [1] * both + [0] * a_only + [1] * b_only + [0] * neither


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_limits_are_where_the_score_test_just_rejects():
    z = 2.5758293035489004  # the 99.5% quantile of the normal distribution
    for successes, n in ((3, 7), (499, 500), (1, 10_000)):
        for limit in wilson(successes, n, 0.99):
            assert abs(successes / n - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / n), rel=1e-9)


def test_wilson_mirrors_and_stays_inside_zero_and_one():
    for n in (1, 2, 50):
        for successes in range(n + 1):
            low, high = wilson(successes, n)
            assert 0 <= low < high <= 1
            assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert wilson(5, 5)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(DataError, match="at least one example"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(MismatchError, match=r"0\.95"):
        wilson(1, 2, confidence)


def test_paired_t_gives_the_published_interval_of_the_sleep_data():
    found = paired_t([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])  # Cushny and Peebles 1905, in Student 1908
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((1.58, 0.7001142, 2.4598858, 10), abs=5e-8)


def test_paired_t_of_equal_differences_has_no_width():
    found = paired_t([0.25, 0.25, 0.25])
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("differences", [[], [1.0], [1.0, math.nan], [[1.0, 2.0]]])
def test_paired_t_refuses_what_has_no_interval(differences):
    with pytest.raises(DataError):
        paired_t(differences)


def test_mcnemar_gives_published_p_values():
    # Armitage and Berry 1994, p. 127 (exact, Liddell): 0.0129. Fagerland et al. 2013 (BMC Medical Research Methodology 13:91), tables 1 and 2: 0.0703, 0.0525.
    for table, p in (((20, 12, 2, 16), 0.0129), ((1, 1, 7, 12), 0.0703), ((59, 6, 16, 80), 0.0525)):
        assert mcnemar(*pairs(*table)).p == pytest.approx(p, abs=5e-5)


def test_mcnemar_p_is_the_exact_binomial_sum_also_for_many_pairs():
    for a_only, b_only in itertools.product((0, 1, 5, 17, 300), repeat=2):
        n = a_only + b_only
        exact = min(Fraction(1), 2 * Fraction(sum(math.comb(n, k) for k in range(min(a_only, b_only) + 1)), 2**n))
        assert mcnemar(*pairs(3, a_only, b_only, 1)).p == pytest.approx(float(exact), rel=1e-9)


def test_mcnemar_interval_is_the_published_newcombe_interval():
    found = mcnemar(*pairs(59, 6, 16, 80))  # Cavo et al. 2012 in Fagerland, Lydersen, Laake, "Statistical Analysis of Contingency Tables", chapter 8
    assert (found.difference, found.low, found.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)


def test_mcnemar_interval_without_correlation_is_the_root_of_squared_reaches():
    found = mcnemar(*pairs(1, 1, 7, 12))  # both * neither - a_only * b_only = 5 < n / 2: phi is zero
    (a_low, a_high), (b_low, b_high) = wilson(2, 21), wilson(8, 21)
    a, b = 2 / 21, 8 / 21
    assert found.low == pytest.approx(a - b - math.hypot(a - a_low, b_high - b))
    assert found.high == pytest.approx(a - b + math.hypot(a_high - a, b - b_low))


def test_mcnemar_turns_round_with_its_sides():
    one, other = mcnemar(*pairs(50, 9, 3, 8)), mcnemar(*pairs(50, 3, 9, 8))
    assert (one.a_only, one.b_only, one.p) == (other.b_only, other.a_only, other.p)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


def test_mcnemar_of_equal_answers_finds_nothing():
    found = mcnemar(np.ones(100, bool), np.ones(100, bool))
    assert (found.p, found.difference) == (1.0, 0.0)
    assert found.low < 0 < found.high


def test_mcnemar_refuses_what_is_not_paired():
    with pytest.raises(MismatchError, match="3 examples and b on 2"):
        mcnemar([1, 0, 1], [1, 0])
    with pytest.raises(DataError):
        mcnemar([], [])
    with pytest.raises(DataError, match="true or false"):
        mcnemar([0, 2], [0, 1])


def test_bootstrap_ratio_agrees_with_a_naive_loop():
    generator = np.random.default_rng(7)
    a, b = generator.lognormal(1.0, 0.2, 15), generator.lognormal(0.0, 0.3, 15)
    picks = np.random.default_rng(3).integers(0, 15, (400, 15))
    naive = sorted(float(np.median([a[i] for i in row]) / np.median([b[i] for i in row])) for row in picks)
    found = bootstrap_ratio(a, b, seed=3, draws=400)
    assert found.ratio == pytest.approx(sorted(a)[7] / sorted(b)[7])
    assert found.low == pytest.approx(naive[9] + (naive[10] - naive[9]) * (0.025 * 399 - 9))
    assert found.high == pytest.approx(naive[389] + (naive[390] - naive[389]) * (0.975 * 399 - 389))
    assert found.n == 15


def test_bootstrap_ratio_cancels_what_both_sides_of_a_round_share():
    shared = np.random.default_rng(0).lognormal(0.0, 1.0, 31)
    paired = bootstrap_ratio(3 * shared, shared)
    shuffled = bootstrap_ratio(3 * shared, np.random.default_rng(1).permutation(shared))
    assert (paired.low, paired.high) == pytest.approx((3.0, 3.0))
    assert shuffled.high - shuffled.low > 0.5


def test_bootstrap_ratio_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(11)
    inside = 0
    for _ in range(200):
        found = bootstrap_ratio(generator.lognormal(math.log(2), 0.1, 25), generator.lognormal(0, 0.1, 25), draws=400)
        inside += found.low <= 2 <= found.high
    assert 0.88 <= inside / 200 <= 1.0  # 95% told; the percentile interval of a median is a little short for 25 rounds


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [([1, 2], [1, 2, 3], MismatchError), ([1], [1], DataError), ([1, math.nan], [1, 1], DataError), ([1, 1], [0, 1], DataError), ([], [], DataError)],
)
def test_bootstrap_ratio_refuses_what_has_no_ratio(a, b, error):
    with pytest.raises(error):
        bootstrap_ratio(a, b)
