"""`feature.ickd` against a loop, and what it does not see."""

from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.ickd import ICKD, ickd_loss

NO_TASK = cast(Task, None)
ROWS: list[Literal["unit", "raw"]] = ["unit", "raw"]


def naive(student: Tensor, teacher: Tensor, rows: str) -> Tensor:
    losses: list[Tensor] = []
    for both in zip(student, teacher, strict=True):
        grams: list[list[Tensor]] = []
        for maps in both:
            gram = [torch.stack([(one * other).sum() for other in maps]) for one in maps]
            grams.append([row / row.square().sum().sqrt() if rows == "unit" else row for row in gram])
        total = sum(((one - other) ** 2 for ours, theirs in zip(*grams, strict=True) for one, other in zip(ours, theirs, strict=True)), torch.zeros(()))
        losses.append(total / len(both[0]) ** (1 if rows == "unit" else 2))
    return torch.stack(losses)


@pytest.mark.parametrize("rows", ROWS)
def test_value_and_gradient_equal_a_loop(rows: Literal["unit", "raw"]) -> None:
    student, teacher = torch.randn(3, 4, 2, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 3, 5, dtype=torch.float64)
    loss, loop = ickd_loss(student, teacher, rows=rows), naive(student, teacher, rows)
    assert torch.allclose(loss, loop, rtol=1e-6)
    (one,), (other,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(loop.sum(), student)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rows", ROWS)
def test_where_the_channels_fire_does_not_count(rows: Literal["unit", "raw"]) -> None:
    maps, other = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    moved = maps.flip(-1).transpose(-1, -2)
    assert torch.allclose(ickd_loss(maps, moved, rows=rows), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(ickd_loss(moved, other, rows=rows), ickd_loss(maps, other, rows=rows))
    assert torch.allclose(ickd_loss(3 * maps, other), ickd_loss(maps, other)), "rows at length one see no scale"


def test_a_convolution_meets_other_channels_and_no_map_is_resized() -> None:
    ickd = ICKD(layers={"s": "t"})
    student, teacher = Knowledge({}, {"s": torch.randn(2, 3, 8, 8)}), Knowledge({}, {"t": torch.randn(2, 5, 4, 4)})
    ickd.bind(student, teacher, NO_TASK, None)
    assert [tuple(p.shape) for p in ickd.parameters()] == [(5, 3, 1, 1), (5,)]
    weight, bias = ickd.parameters()
    projected = torch.einsum("nchw,dc->ndhw", student.features["s"], weight[..., 0, 0]) + bias[:, None, None]
    assert torch.allclose(ickd(student, teacher, {}), ickd_loss(projected, teacher.features["t"]), rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"3 channels.*5"):
        ickd_loss(torch.zeros(2, 3, 2, 2), torch.zeros(2, 5, 2, 2))
    with pytest.raises(MismatchError, match=r"'s' is \[2, 4\].*'t'.*maps"):
        ICKD(layers={"s": "t"}).bind(Knowledge({}, {"s": torch.zeros(2, 4)}), Knowledge({}, {"t": torch.zeros(2, 4)}), NO_TASK, None)
    with pytest.raises(RecipeError, match="did you mean 'unit'"):
        ICKD(rows=cast(Any, "units"))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1, 1, 1), (2, 3, 5, 4), (1, 4, 1, 7)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from(ROWS),
    st.booleans(),
)
def test_any_map_has_a_finite_loss_and_gradient(shape: tuple[int, ...], scale: float, dtype: torch.dtype, rows: Literal["unit", "raw"], dead: bool) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student = (torch.randn(shape) * scale * (not dead)).to(dtype).requires_grad_()
    loss = ickd_loss(student, torch.randn(*shape[:2], 3, 2).to(dtype) * scale, rows=rows)
    check_sound(loss, student)
