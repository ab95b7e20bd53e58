"""Every test here draws the same numbers each time."""

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def check_sound(loss: Tensor, student: Tensor) -> None:
    """A loss of the student's feature is finite, in float32 at least, and so is its gradient."""
    assert loss.dtype == torch.promote_types(student.dtype, torch.float32)
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient.isfinite().all()
