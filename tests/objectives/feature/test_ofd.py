"""`feature.ofd` against a loop, its margins against the closed form."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.ofd import OFD, negative_means, ofd_loss

NO_TASK = cast(Task, None)


def sides(student: Tensor, teacher: Tensor) -> tuple[Knowledge, Knowledge]:
    outputs = {"main": Dense(torch.zeros(len(student), 3))}
    return Knowledge(outputs, {"s": student}), Knowledge(outputs, {"t": teacher})


def test_value_and_gradient_equal_a_loop_of_the_paper_s_cases() -> None:
    student, teacher = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    margin = torch.tensor([-0.1, -0.5, -1.0, 0.0], dtype=torch.float64)
    total, slopes = torch.zeros(3, dtype=torch.float64), torch.zeros_like(student)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in student.shape)).tolist():
        s, t = student[tuple(index)].item(), max(teacher[tuple(index)].item(), margin[index[1]].item())
        if not s <= t <= 0:
            total[index[0]] += (t - s) ** 2
            slopes[tuple(index)] = 2 * (s - t)
    loss = ofd_loss(student, teacher, margin.reshape(4, 1, 1))
    assert torch.allclose(loss, total, rtol=1e-9)
    assert torch.allclose(torch.autograd.grad(loss.sum(), student)[0], slopes, rtol=1e-9)


def test_margins_are_means_of_what_is_below_zero() -> None:
    teacher = torch.randn(5, 3, 4, 4).double()
    teacher[:, 2] = teacher[:, 2].abs() + 1
    found = negative_means(teacher)
    assert found.shape == (3, 1, 1)
    for channel in (0, 1):
        below = [value for value in teacher[:, channel].flatten().tolist() if value < 0]
        assert found[channel].item() == pytest.approx(sum(below) / len(below))
    assert found[2].item() == pytest.approx(-3 * teacher[:, 2].std(correction=0).item()), "none is below zero"
    assert negative_means(torch.randn(5, 3)).shape == (3,)


def test_margins_after_a_batch_norm_are_the_closed_form_of_the_paper() -> None:
    shift, scale = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.7, 2.0], dtype=torch.float64)
    draws = torch.randn(200_000, 3, dtype=torch.float64) * scale + shift
    ratio = shift / scale
    closed = shift - scale * torch.exp(-(ratio**2) / 2) / torch.sqrt(torch.tensor(2 * torch.pi)) / torch.special.ndtr(-ratio)
    assert torch.allclose(negative_means(draws), closed, rtol=0.02)


def test_margins_are_those_of_the_binding_batch_and_are_saved() -> None:
    teacher = torch.randn(4, 3, 2, 2)
    ofd, (student, theirs) = OFD(layers={"s": "t"}), sides(torch.randn(4, 3, 2, 2), teacher)
    ofd.bind(student, theirs, NO_TASK, None)
    assert not list(ofd.parameters()), "between equal shapes nothing is to be learnt"
    assert torch.allclose(ofd(student, theirs, {}), ofd_loss(student.features["s"], teacher, negative_means(teacher)).mean())
    other, later = OFD(layers={"s": "t"}), sides(torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2) - 1)
    other.bind(*later, NO_TASK, None)
    assert not torch.equal(other(student, theirs, {}), ofd(student, theirs, {}))
    other.load_state_dict(ofd.state_dict())
    assert torch.equal(other(student, theirs, {}), ofd(student, theirs, {}))


def test_earlier_layers_weigh_less_by_decay() -> None:
    student, teacher = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    ours, theirs = Knowledge({}, {"a": student, "b": student, "c": student}), Knowledge({}, {"x": teacher, "y": teacher, "z": teacher})
    ofd = OFD(layers={"a": "x", "b": "y", "c": "z"}, decay=0.5)
    ofd.bind(ours, theirs, NO_TASK, None)
    assert torch.allclose(ofd(ours, theirs, {}), 1.75 * ofd_loss(student, teacher, negative_means(teacher)).mean())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[2, 4\].*connect"):
        ofd_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(4))
    with pytest.raises(MismatchError, match=r"teacher's 't' is never below zero.*OFD.*:in"):
        OFD(layers={"s": "t"}).bind(*sides(torch.randn(4, 3, 2, 2), torch.rand(4, 3, 2, 2)), NO_TASK, None)
    with pytest.raises(RecipeError, match="decay is 0"):
        OFD(decay=0.0)
    assert ofd_loss(torch.zeros(1, 2), torch.tensor([[float("nan"), 1.0]]), torch.zeros(2)).isnan().all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 1, 1, 1), (2, 3, 5, 4)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_feature_has_a_finite_loss_and_gradient(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student, teacher = ((torch.randn(shape) * scale).to(dtype) for _ in range(2))
    student.requires_grad_()
    loss = ofd_loss(student, teacher, negative_means(teacher))
    check_sound(loss, student)
