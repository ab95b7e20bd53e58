"""What every objective of relations does with any features."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import MismatchError
from limbeck.objectives.relation.cc import cc_loss
from limbeck.objectives.relation.pkt import pkt_loss
from limbeck.objectives.relation.rkd_angle import rkd_angle_loss
from limbeck.objectives.relation.rkd_distance import rkd_distance_loss
from limbeck.objectives.relation.sp import sp_loss

LEAVES = {
    "sp": sp_loss, "pkt": pkt_loss, "gaussian cc": cc_loss, "bilinear cc": partial(cc_loss, kernel="bilinear"),
    "rkd_distance": rkd_distance_loss, "rkd_angle": rkd_angle_loss,
}  # fmt: skip

every = pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES.keys())


@every
@given(
    n=st.integers(1, 5), shape=st.sampled_from([(1,), (3,), (1, 1), (2, 3, 5), (1, 1, 1)]), scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), zero=st.booleans(), twins=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_it_is_finite_everywhere(leaf: Any, n: int, shape: tuple[int, ...], scale: float, dtype: torch.dtype, zero: bool, twins: bool) -> None:
    student = (torch.randn(n, *shape) * scale * (not zero)).to(dtype)
    if twins:
        student[-1] = student[0]
    teacher = (torch.randn(n, 2) * scale).to(dtype)
    loss = leaf(student, teacher)
    exact = (student if dtype == torch.float64 else student.float()).requires_grad_()  # a slope above 65504 has no float16
    leaf(exact, teacher).backward()
    assert exact.grad is not None
    assert loss.isfinite() and exact.grad.isfinite().all()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every
def test_other_numbers_of_examples_are_refused(leaf: Any) -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[3, 4\]"):
        leaf(torch.zeros(2, 4), torch.zeros(3, 4))
