"""The counter-based hash, against SplitMix64 in whole numbers and against chance."""

import numpy as np
import pytest
import torch
from scipy import stats

from limbeck.core.draw import below, bits, gaussian, key, permutation, uniform

MASK = (1 << 64) - 1


def splitmix(counter: int, with_key: int) -> int:
    """Steele et al. 2014, in Python's unbounded integers."""
    z = (counter * 0x9E3779B97F4A7C15 + with_key) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_known_sequence() -> None:
    # SplitMix64 seeded with 0: its first outputs, as published with the reference generator.
    got = bits(torch.arange(1, 4), 0)
    assert [int(v) & MASK for v in got] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("with_key", [0, 1, (1 << 63) + 12345, MASK])
def test_bits_equal_whole_number_arithmetic(with_key: int) -> None:
    counters = [0, 1, 2, 59_999, 2**31, 2**62, -1]
    got = bits(torch.tensor(counters), with_key)
    assert [int(v) & MASK for v in got] == [splitmix(c, with_key) for c in counters]


def test_bits_leaves_its_argument_alone() -> None:
    counters = torch.arange(5)
    bits(counters, 7)
    below(bits(counters, 7), 3, 0)
    assert counters.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("half", [0, 1])
def test_below_is_the_scaled_half_word(half: int) -> None:
    hashed = bits(torch.arange(1000), 99)
    want = [(((int(v) & MASK) >> (32 * half)) & 0xFFFFFFFF) * 5 >> 32 for v in hashed]
    assert below(hashed, 5, half).tolist() == want
    assert set(want) == {0, 1, 2, 3, 4}


def test_key_depends_on_every_part_and_their_order() -> None:
    keys = {key(a, b, c) for a in range(8) for b in range(8) for c in range(8)} | {key(a, b) for a in range(8) for b in range(8)}
    assert len(keys) == 8**3 + 8**2
    assert all(0 <= k <= MASK for k in keys)
    assert key(-1) != key(1)


def p_uniform(table: np.ndarray) -> float:
    return float(stats.chisquare(table.ravel()).pvalue)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_are_uniform_and_independent(seed: int) -> None:
    """Cells of a 5x5 table of two draws are equally likely: both halves of a hash, neighbours in id, epoch, seed and step."""
    ids = torch.arange(50_000)
    here = bits(ids, key(seed, 3, 0))
    first = below(here, 5, 1)
    others = {
        "the other half": below(here, 5, 0),
        "the next id": below(bits(ids + 1, key(seed, 3, 0)), 5, 1),
        "the next epoch": below(bits(ids, key(seed, 4, 0)), 5, 1),
        "the next seed": below(bits(ids, key(seed + 1, 3, 0)), 5, 1),
        "the next step": below(bits(ids, key(seed, 3, 1)), 5, 1),
        "the sign": (here < 0).long(),
    }
    for name, other in others.items():
        size = int(other.max()) + 1
        table = np.bincount((first * size + other).numpy(), minlength=5 * size)
        if name == "the sign":  # the sign is the top bit of the upper half: tested alone
            table = np.bincount(other.numpy(), minlength=2)
        p = p_uniform(table)
        assert p > 1e-4, f"{name}: p = {p:.2g}"


def test_chi_square_notices_a_biased_draw() -> None:
    assert p_uniform(np.bincount((torch.arange(50_000) % 5 * torch.arange(50_000) % 5).numpy(), minlength=5)) < 1e-4


def test_permutation() -> None:
    order = permutation(100, key(0, 1))
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, permutation(100, key(0, 1)))
    assert not torch.equal(order, permutation(100, key(0, 2)))
    state = torch.random.get_rng_state()
    permutation(100, 5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_real_numbers_stay_within_their_ends() -> None:
    ends = torch.tensor([0, -1, -(1 << 63), (1 << 63) - 1, 0xFFFFFFFF, -(1 << 32)])
    for half in (0, 1):
        found = uniform(ends, half)
        assert found.dtype == torch.float32 and found.min() > 0 and found.max() < 1
    assert gaussian(ends).isfinite().all()


def test_gaussian_numbers_have_the_normal_distribution() -> None:
    found = gaussian(bits(torch.arange(200_000), key(7))).double().sort().values
    expected = torch.special.ndtr(found)
    steps = torch.arange(1, 200_001) / 200_000
    assert (expected - steps).abs().max() < 1.63 / 200_000**0.5, "Kolmogorov and Smirnov, 1%"
