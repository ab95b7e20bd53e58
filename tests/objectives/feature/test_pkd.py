"""`feature.pkd` against a loop and Pearson's correlation, and its blindness to scale and offset."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.pkd import PKD, pkd_loss

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the correlation of each channel of two maps, averaged: sums of scalars."""
    losses = []
    for channel in range(student.shape[1]):
        xs, ys = student[:, channel].flatten().unbind(), teacher[:, channel].flatten().unbind()
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        together = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
        alone = sum((a - x) ** 2 for a in xs) ** 0.5 * sum((b - y) ** 2 for b in ys) ** 0.5
        losses.append(1 - together / alone)
    return torch.stack(losses).mean()


def test_it_is_one_minus_the_correlation_value_and_gradient() -> None:
    student, teacher = torch.randn(2, 3, 4, 3, 2, dtype=torch.float64).unbind()
    student.requires_grad_()
    loss, slow = pkd_loss(student, teacher), naive(student, teacher)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-6)
    (fast,), (plain,) = torch.autograd.grad(loss, student), torch.autograd.grad(slow, student)
    assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 3), (4, 3, 2, 5)])
def test_scale_and_offset_of_a_channel_do_not_count_and_its_sign_does(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape).unbind()
    each = (1, 3, 1, 1) if len(shape) == 4 else (3,)
    scale, offset = torch.tensor([0.1, 3.0, 7.0]).reshape(each), torch.tensor([-2.0, 0.0, 5.0]).reshape(each)
    assert torch.allclose(pkd_loss(student * scale + offset, teacher), pkd_loss(student, teacher), rtol=1e-4)
    assert pkd_loss(-teacher, teacher).item() == pytest.approx(2, rel=1e-5)
    assert pkd_loss(teacher * scale, teacher).item() == pytest.approx(0, abs=1e-6)


def test_a_constant_channel_has_no_correlation_and_no_gradient() -> None:
    teacher = torch.randn(4, 2, 3, 3)
    dead = torch.full_like(teacher, 1000.1).requires_grad_()
    loss = pkd_loss(dead, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, rel=1e-5)
    assert dead.grad is not None
    assert not dead.grad.any()
    assert pkd_loss(dead, torch.zeros_like(teacher)).item() == 0
    assert pkd_loss(torch.randn(1, 4), torch.randn(1, 4)).item() == 0, "one example varies in nothing"


@settings(max_examples=25, deadline=None)
@given(st.tuples(*(st.integers(1, 5),) * 4), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES, st.integers(0, 9))
def test_every_shape_scale_and_precision_is_finite(shape: tuple[int, ...], scale: float, dtype: torch.dtype, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student = (scale * torch.randn(shape, generator=draw)).to(dtype).requires_grad_()
    loss = pkd_loss(student, (scale * torch.randn(shape, generator=draw)).to(dtype))
    assert 0 <= loss.item() <= 2 + 1e-5
    check_sound(loss, student)


def test_several_pairs_add_up_and_a_mask_leaves_examples_out() -> None:
    ours, theirs = {"a": torch.randn(4, 3, 2, 2), "b": torch.randn(4, 5)}, {"a": torch.randn(4, 3, 2, 2), "b": torch.randn(4, 5)}
    pkd = PKD(layers={"a": "a", "b": "b"})
    said = {"main": Dense(torch.zeros(4, 2))}
    pkd.bind(Knowledge(said, ours), Knowledge(said, theirs), cast(Task, None), None)
    assert torch.allclose(pkd(Knowledge(said, ours), Knowledge(said, theirs), {}), pkd_loss(ours["a"], theirs["a"]) + pkd_loss(ours["b"], theirs["b"]))
    mask = torch.tensor([True, True, False, True])
    masked = pkd(Knowledge(said, ours, mask), Knowledge(said, theirs), {})
    assert torch.allclose(masked, sum((pkd_loss(ours[one][mask], theirs[one][mask]) for one in "ab"), torch.zeros(())))


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 6\].*project"):
        pkd_loss(torch.zeros(2, 4), torch.zeros(2, 6))
