import json
import math
import re

import pytest
import torch

from limbeck.core.errors import DataError, MismatchError, ParityError
from limbeck.export import FLOAT, INT8, Tolerance, parity

A = torch.tensor([[1.0, -2.0, 4.0], [0.0, 3.0, -1.0], [2.0, 1.0, 0.0]])
B = torch.tensor([[1.0, -2.0, 4.5], [0.0, 3.0, -1.0], [1.0, 2.0, 0.0]])


def test_every_figure_by_hand():
    found = parity(A, B, quantized=True)
    assert found.inputs == 3
    assert found.scale == 4.0
    assert found.max_abs == 1.0
    assert found.max_rel == pytest.approx(1.0)  # |1 - 2| / 1, in example 2
    assert found.worst == (2, 0, 2.0, 1.0)
    assert found.flipped == (2, 0, 1)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.cosine == pytest.approx((2 * 1 + 1 * 2) / 5)  # example 2; both have length sqrt 5
    assert found.sqnr_db == pytest.approx(10 * math.log10((21 + 10 + 5) / (0.25 + 1 + 1)))


def test_every_figure_against_a_naive_loop():
    torch.manual_seed(0)
    a = torch.randn(37, 5)
    b = a + 0.1 * torch.randn(37, 5)
    found = parity(a, b, quantized=True)
    scale = max(abs(v) for row in a.tolist() for v in row)
    gaps, rels, cosines, same, noise, signal = [], [], [], 0, 0.0, 0.0
    for ours, theirs in zip(a.tolist(), b.tolist(), strict=True):
        for p, q in zip(ours, theirs, strict=True):
            gaps.append(abs(p - q))
            rels.append(abs(p - q) / max(abs(p), 1e-3 * scale))
            noise += (p - q) ** 2
            signal += p**2
        dot = sum(p * q for p, q in zip(ours, theirs, strict=True))
        cosines.append(dot / math.sqrt(sum(p * p for p in ours) * sum(q * q for q in theirs)))
        same += ours.index(max(ours)) == theirs.index(max(theirs))
    assert found.max_abs == pytest.approx(max(gaps))
    assert found.max_rel == pytest.approx(max(rels))
    assert found.cosine == pytest.approx(min(cosines))
    assert found.agreement == pytest.approx(same / 37)
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))


def test_a_uniform_rounding_has_the_textbook_sqnr():
    """Noise of a rounding to steps of d is d^2 / 12."""
    torch.manual_seed(0)
    a = torch.rand(4000, 8, dtype=torch.float64) * 2 - 1
    step = 1 / 64
    found = parity(a, (a / step).round() * step, quantized=True)
    assert found.sqnr_db == pytest.approx(10 * math.log10((1 / 3) / (step**2 / 12)), abs=0.05)


def test_equal_outputs_pass_and_their_metrics_are_json():
    found = parity(A, A.clone(), quantized=True)
    found.check()
    assert found.sqnr_db == math.inf
    assert found.flipped is None
    metrics = json.loads(json.dumps(found.metrics(), allow_nan=False))
    assert metrics == {"parity_inputs": 3, "parity_max_abs": 0, "parity_max_rel": 0, "parity_cosine": pytest.approx(1), "parity_agreement": 1}


def test_the_names_of_the_metrics():
    assert set(parity(A, B).metrics()) == {"parity_inputs", "parity_max_abs", "parity_max_rel", "parity_cosine"}
    assert set(parity(A, B, quantized=True).metrics()) == {*parity(A, B).metrics(), "parity_agreement", "parity_sqnr_db"}


def test_the_float_tolerance_is_measured_by_the_scale_of_the_logits():
    a = torch.tensor([[1000.0, 0.0]], dtype=torch.float64)
    parity(a, a + torch.tensor([[0.0, 0.0999]])).check()
    with pytest.raises(ParityError):
        parity(a, a + torch.tensor([[0.0, 0.1001]])).check()
    small = torch.tensor([[0.001, 0.0]], dtype=torch.float64)
    parity(small, small + 0.99e-4).check()
    with pytest.raises(ParityError):
        parity(small, small + 1.01e-4).check(FLOAT)


def test_a_failed_check_says_which_output_differs():
    with pytest.raises(ParityError, match=r"output 'logits' differs most at example 2, class 0: 2 in the model, 1 in the file.*more than 0\.0004"):
        parity(A, B).check()
    with pytest.raises(ParityError, match=r"66\.67% of 3 examples.*97\.00%.*example 2 is class 0 in the model and 1 in the file"):
        parity(A, B, quantized=True, output="logits").check()
    with pytest.raises(ParityError, match="cosine"):
        parity(A, B).check(Tolerance(cosine=0.99))


def test_each_bound_is_its_own():
    found = parity(A, B, quantized=True)
    found.check(Tolerance())
    found.check(Tolerance(max_abs=0.25, cosine=0.799, agreement=0.66, sqnr_db=12))
    for bound in (Tolerance(max_abs=0.2499), Tolerance(cosine=0.81), Tolerance(agreement=0.67), Tolerance(sqnr_db=12.1)):
        with pytest.raises(ParityError):
            found.check(bound)


def test_int8_needs_both_agreement_and_signal():
    quiet = torch.eye(4) * 1e-2 + 10
    louder = torch.eye(4) * 1e-2 + 10 * torch.tensor([1.0, 1, 1, 1]) * 3
    with pytest.raises(ParityError, match=re.escape(f"{INT8.sqnr_db:g} dB")):
        parity(quiet, louder, quantized=True).check()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["model", "file"])
def test_nothing_agrees_with_a_number_that_is_not_finite(bad, side):
    broken = A.clone()
    broken[1, 2] = bad
    pair = (broken, broken) if side == "model" else (A, broken)
    with pytest.raises(ParityError, match=f"in the {side} at example 1, class 2"):
        parity(*pair)


def test_outputs_of_zeros():
    zero = torch.zeros(2, 3)
    same = parity(zero, zero)
    assert (same.max_rel, same.cosine) == (0.0, 1.0)
    off = parity(zero, A[:2], quantized=True)
    assert (off.cosine, off.sqnr_db) == (0.0, -math.inf)
    json.dumps(off.metrics(), allow_nan=False)
    with pytest.raises(ParityError, match="dB"):
        off.check(Tolerance(sqnr_db=0.0))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(MismatchError, match=r"\[3, 3\].*\[3, 2\]"):
        parity(A, B[:, :2])
    with pytest.raises(MismatchError):
        parity(A[0], B[0])
    with pytest.raises(DataError, match="at least one"):
        parity(A[:0], B[:0])
