"""What every objective of hidden states does with any states."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound

from limbeck.objectives.feature.cosine import cosine_loss
from limbeck.objectives.feature.patient import patient_loss


@pytest.mark.parametrize(("leaf", "most"), [(cosine_loss, 2), (patient_loss, 4)])
@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (3, 5), (1, 1, 1), (2, 3, 4)]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    dead=st.booleans(),
)
def test_any_states_have_a_finite_loss_and_gradient(leaf: Any, most: float, shape: tuple[int, ...], scale: float, dtype: torch.dtype, dead: bool) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student = (torch.randn(shape) * scale * (not dead)).to(dtype).requires_grad_()
    loss = leaf(student, torch.randn(shape).to(dtype))
    assert ((loss > -1e-6) & (loss < most + 1e-5)).all()
    check_sound(loss, student)
