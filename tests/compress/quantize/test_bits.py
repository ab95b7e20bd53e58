import numpy as np
import pytest

from limbeck.compress.quantize._bits import grouped, packed


def naive(weights, bits, block):
    """Each group by itself: the shares 1, 0.95, ..., 0.5 of its range, numbers one by one."""
    top, made = 2**bits - 1, np.zeros(weights.shape)
    for n, row in enumerate(weights):
        for start in range(0, len(row), block):
            group = row[start : start + block].astype(np.float64)
            low, high = min(group.min(), 0.0), max(group.max(), 0.0)
            best = np.inf
            for share in np.arange(1.0, 0.49, -0.05):
                scale = float(np.float16((high - low) / top * share)) if high > low else 1.0
                zero = min(max(round(-low * share / scale), 0), top)
                back = np.array([(min(max(round(w / scale) + zero, 0), top) - zero) * scale for w in group])
                if ((back - group) ** 2).sum() < best - 1e-12:
                    best, made[n, start : start + block] = ((back - group) ** 2).sum(), back
    return made


@pytest.mark.parametrize(("bits", "block", "inner"), [(4, 32, 64), (4, 32, 70), (8, 64, 64), (4, 128, 20)])
def test_groups_are_what_a_naive_search_finds(bits, block, inner):
    weights = np.random.default_rng(0).standard_normal((5, inner)).astype(np.float32)
    found = grouped(weights, bits, block)
    expected = naive(weights, bits, block)
    assert found.codes.shape == (5, -(-inner // block), block)
    assert found.scales.shape == found.zeros.shape == (5, -(-inner // block))
    assert found.scales.dtype == np.float16
    error, least = ((found.weights() - weights) ** 2).sum(), ((expected - weights) ** 2).sum()
    assert error == pytest.approx(least, rel=1e-3)
    assert (np.abs(found.weights() - expected) < 1e-4).mean() > 0.98, "ties aside"


def test_zero_stays_zero_and_a_group_of_zeros_too():
    weights = np.random.default_rng(0).uniform(1, 2, (3, 64)).astype(np.float32)
    weights[:, ::4] = 0
    weights[1] = 0
    back = grouped(weights, 4, 32).weights()
    assert (back[weights == 0] == 0).all()
    assert (back[1] == 0).all()


@pytest.mark.parametrize("scale", [1e-5, 1e8])
def test_scales_that_float16_cannot_hold_are_float32(scale):
    weights = (np.random.default_rng(0).standard_normal((3, 64)) * scale).astype(np.float32)
    found = grouped(weights, 8, 32)
    assert found.scales.dtype == np.float32
    assert np.abs(found.weights() - weights).max() < 0.02 * scale


def test_fewer_weights_to_a_scale_and_more_bits_are_more_exact():
    weights = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    error = {key: ((grouped(weights, *key).weights() - weights) ** 2).mean() for key in ((4, 32), (4, 64), (4, 128), (8, 128))}
    assert error[4, 32] < error[4, 64] < error[4, 128]
    assert error[8, 128] < error[4, 128] / 100


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_packing_puts_the_first_code_lowest(bits, count):
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, count))
    each = 8 // bits
    for row, line in zip(packed(codes, bits), codes, strict=True):
        assert row.dtype == np.uint8
        assert len(row) == -(-count // each)
        back = [int(byte) >> (bits * place) & (2**bits - 1) for byte in row for place in range(each)]
        assert back[:count] == line.tolist()
        assert not any(back[count:])
