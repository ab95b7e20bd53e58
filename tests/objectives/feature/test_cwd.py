"""`feature.cwd` against a loop, its blindness to offsets, and its limit at high temperature."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.schedule import Clock, Linear
from limbeck.core.task import Task
from limbeck.objectives.feature.cwd import CWD, cwd_loss

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def naive(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One example after the other, one channel after the other, one place after the other."""
    rows = []
    for ours, theirs in zip(student, teacher, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(ours, theirs, strict=True):
            q, p = [torch.exp(v / temperature) for v in x.flatten()], [torch.exp(v / temperature) for v in y.flatten()]
            total = total + sum(b / sum(p) * torch.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p, strict=True))
        rows.append(temperature**2 * total / len(ours))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_equals_a_loop_value_and_gradient(temperature: float) -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64).unbind()
    student.requires_grad_()
    loss, slow = cwd_loss(student, teacher, temperature=temperature), naive(student, teacher, temperature)
    assert torch.allclose(loss, slow, rtol=1e-6)
    (fast,), (plain,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(slow.sum(), student)
    assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-12)


def test_an_offset_of_a_channel_does_not_count() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 4).unbind()
    assert torch.allclose(cwd_loss(student + torch.tensor([1.0, -5.0, 30.0]).reshape(3, 1, 1), teacher), cwd_loss(student, teacher), rtol=1e-3)


def test_at_high_temperature_it_is_half_the_mean_squared_gap_of_centred_channels() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64).unbind()
    centred = [x - x.mean((2, 3), keepdim=True) for x in (student, teacher)]
    limit = (centred[0] - centred[1]).square().mean((1, 2, 3)) / 2
    assert torch.allclose(cwd_loss(student, teacher, temperature=1e4), limit, rtol=1e-3)


def test_a_sequence_is_a_map_with_its_channels_last() -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 2).unbind()
    tokens = [x.flatten(2).transpose(1, 2) for x in (student, teacher)]
    assert torch.allclose(cwd_loss(*tokens), cwd_loss(student, teacher))


@settings(max_examples=25, deadline=None)
@given(st.tuples(*(st.integers(1, 5),) * 4), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES, st.integers(0, 9))
def test_every_shape_scale_and_precision_is_finite(shape: tuple[int, ...], scale: float, dtype: torch.dtype, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student = (scale * torch.randn(shape, generator=draw)).to(dtype).requires_grad_()
    loss = cwd_loss(student, (scale * torch.randn(shape, generator=draw)).to(dtype))
    check_sound(loss, student)


def test_its_temperature_follows_a_schedule() -> None:
    ours, theirs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    cwd = CWD(layers={"s": "t"}, temperature=Linear(start=1, end=3, epochs=2))
    student, teacher = Knowledge({"main": Dense(torch.zeros(2, 2))}, {"s": ours}), Knowledge({}, {"t": theirs})
    cwd.bind(student, teacher, cast(Task, None), None)
    cwd.clock = Clock(1, 4)
    assert torch.allclose(cwd(student, teacher, {}), cwd_loss(ours, theirs, temperature=2.0))


def test_what_has_no_places_and_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4, 2, 2\].*\[2, 6, 2, 2\].*project"):
        cwd_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 6, 2, 2))
    with pytest.raises(MismatchError, match=r"\[2, 4\]"):
        cwd_loss(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(RecipeError, match="temperature is 0"):
        CWD(temperature=0.0)
    for shape in ((2, 4), (2, 4, 1, 1)):
        with pytest.raises(MismatchError, match=r"'t'.*one place.*earlier"):
            CWD(layers={"s": "t"}).bind(Knowledge({}, {"s": torch.zeros(shape)}), Knowledge({}, {"t": torch.zeros(shape)}), cast(Task, None), None)
