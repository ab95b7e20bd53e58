"""`feature.nst` against a loop, and what a maximum mean discrepancy must be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.nst import NST, nst_loss


def naive(student: Tensor, teacher: Tensor, degree: int, constant: float) -> Tensor:
    """One kernel value after the other."""
    losses: list[Tensor] = []
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = ([channel.flatten() / channel.flatten().square().sum().sqrt() for channel in maps] for maps in (ours, theirs))
        inside = sum((((a * b).sum() + constant) ** degree for a in s for b in s), torch.zeros(())) / len(s) ** 2
        beyond = sum((((a * b).sum() + constant) ** degree for a in t for b in t), torch.zeros(())) / len(t) ** 2
        between = sum((((a * b).sum() + constant) ** degree for a in s for b in t), torch.zeros(())) / (len(s) * len(t))
        losses.append(inside + beyond - 2 * between)
    return torch.stack(losses)


@pytest.mark.parametrize(("degree", "constant"), [(2, 0.0), (1, 0.0), (1, 0.7), (3, 0.5)])
def test_value_and_gradient_equal_a_loop(degree: int, constant: float) -> None:
    student, teacher = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 3, 2, dtype=torch.float64)
    loss, loop = nst_loss(student, teacher, degree=degree, constant=constant), naive(student, teacher, degree, constant)
    assert torch.allclose(loss, loop, rtol=1e-6)
    (one,), (other,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(loop.sum(), student)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_neither_order_nor_copies_nor_scale_of_channels_count() -> None:
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 4, 4).double()
    loss = nst_loss(student, teacher)
    assert (loss > 0).all()
    assert torch.allclose(nst_loss(student[:, [2, 0, 1]], teacher), loss)
    assert torch.allclose(nst_loss(student.repeat(1, 2, 1, 1), teacher), loss)
    assert torch.allclose(nst_loss(7 * student, teacher), loss)
    assert torch.allclose(nst_loss(student, student.repeat(1, 4, 1, 1)), torch.zeros(2).double(), atol=1e-12)


def test_degree_two_is_the_distance_of_second_moments_of_places() -> None:
    student, teacher = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 5, 2, 2).double()
    moments = []
    for maps in (student, teacher):
        f = torch.nn.functional.normalize(maps.flatten(2), dim=-1)
        moments.append(f.mT @ f / f.shape[1])
    assert torch.allclose(nst_loss(student, teacher), (moments[0] - moments[1]).square().sum((1, 2)))


def test_the_larger_map_is_averaged_down() -> None:
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 4)
    pooled = student.reshape(2, 3, 4, 2, 4).mean(3)
    assert torch.allclose(nst_loss(student, teacher), nst_loss(pooled, teacher), atol=1e-6)
    assert torch.allclose(nst_loss(teacher, student), nst_loss(teacher, pooled), atol=1e-6)


def test_it_reads_layers_and_learns_nothing() -> None:
    nst = NST(layers={"a": "b", "c": "d"})
    ours, theirs = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    student, teacher = Knowledge({}, {"a": ours, "c": ours}), Knowledge({}, {"b": theirs, "d": theirs})
    nst.bind(student, teacher, Task, None)  # pyright: ignore[reportArgumentType]
    assert not nst.state_dict()
    assert torch.allclose(nst(student, teacher, {}), 2 * nst_loss(ours, theirs))


def test_what_is_no_map_and_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 4, 3, 3\].*maps"):
        nst_loss(torch.zeros(2, 4), torch.zeros(2, 4, 3, 3))
    with pytest.raises(MismatchError, match=r"\[1, 4, 3, 3\].*\[2, 4, 3, 3\]"):
        nst_loss(torch.zeros(1, 4, 3, 3), torch.zeros(2, 4, 3, 3))
    with pytest.raises(MismatchError, match=r"'a' is \[2, 4\].*'b'"):
        NST(layers={"a": "b"}).bind(Knowledge({}, {"a": torch.zeros(2, 4)}), Knowledge({}, {"b": torch.zeros(2, 4)}), Task, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="degree is 0"):
        NST(degree=0)
    with pytest.raises(RecipeError, match="constant is -1"):
        NST(constant=-1.0)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1, 1, 1), (2, 3, 5, 4), (1, 4, 1, 7)]),
    st.sampled_from([(1, 1), (3, 2), (6, 6)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.booleans(),
)
def test_any_map_has_a_finite_loss_and_gradient(shape: tuple[int, ...], size: tuple[int, int], scale: float, dtype: torch.dtype, dead: bool) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student = (torch.randn(shape) * scale * (not dead)).to(dtype).requires_grad_()
    loss = nst_loss(student, torch.randn(shape[0], 3, *size).to(dtype) * scale)
    check_sound(loss, student)
