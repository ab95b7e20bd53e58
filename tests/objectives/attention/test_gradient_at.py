"""`attention.gradient_at` against a loop and against the closed form of a linear model, whose input's gradient is known."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Facts, Task
from limbeck.objectives.attention.gradient_at import GradientAT, gradient_at_loss
from limbeck.schemes.offline import Offline


def test_both_distances_equal_a_loop() -> None:
    student, teacher = torch.randn(2, 3, 1, 2, 4, dtype=torch.float64).unbind()
    student.requires_grad_()
    for row in range(3):
        squares = sum((a - b) ** 2 for a, b in zip(student[row].flatten().tolist(), teacher[row].flatten().tolist(), strict=True))
        assert gradient_at_loss(student, teacher)[row].item() == pytest.approx(math.sqrt(squares), rel=1e-9)
        assert gradient_at_loss(student, teacher, distance="square")[row].item() == pytest.approx(squares, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: gradient_at_loss(x, teacher), student, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda x: gradient_at_loss(x, teacher, distance="square"), student, rtol=1e-6)


def test_through_real_models_it_is_the_gradient_of_a_gradient() -> None:
    """For logits W x and cross-entropy, J = W^T (softmax(W x) - e_y)."""
    student, teacher = (nn.Linear(4, 3, bias=False).double() for _ in range(2))
    batch = {"input": torch.randn(5, 4, dtype=torch.float64), "label": torch.tensor([0, 1, 2, 0, 1])}
    scheme = Offline(student, teacher, [GradientAT()], example=batch)
    scheme(batch).loss.backward()

    def sensitivity(weight: torch.Tensor) -> torch.Tensor:
        return ((batch["input"] @ weight.T).softmax(-1) - torch.eye(3, dtype=torch.float64)[batch["label"]]) @ weight

    weight = student.weight.detach().clone().requires_grad_()
    expected = (sensitivity(weight) - sensitivity(teacher.weight.detach())).norm(dim=1).mean()
    expected.backward()
    assert scheme(batch).loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert student.weight.grad is not None
    assert weight.grad is not None
    assert torch.allclose(student.weight.grad, weight.grad)
    assert teacher.weight.grad is None


@given(
    shape=st.sampled_from([(1, 1), (1, 3, 5, 4), (4, 1, 1, 1), (3, 7)]), scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), distance=st.sampled_from(["norm", "square"]), same=st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_finite_for_every_shape_scale_and_dtype(shape: tuple[int, ...], scale: float, dtype: torch.dtype, distance: Any, same: bool) -> None:
    student = (scale * torch.randn(shape)).to(dtype).requires_grad_()
    teacher = student.detach() if same else (scale * torch.randn(shape)).clamp(-2 * scale, 2 * scale).to(dtype)
    loss = gradient_at_loss(student, teacher, distance=distance)
    loss.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if same:
        assert not loss.any()
        assert not student.grad.any()


def test_what_it_reads() -> None:
    needs = GradientAT().needs
    assert needs.labels
    assert needs.teacher is not None
    assert needs.student.input_gradient
    assert needs.teacher.input_gradient


def test_what_cannot_be_meant_is_refused() -> None:
    plain = Knowledge({"main": Dense(torch.zeros(2, 3))})
    read = Knowledge({"main": Dense(torch.zeros(2, 3))}, input_gradient=torch.zeros(2, 4))
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5\].*same batch"):
        gradient_at_loss(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(MismatchError, match="the teacher was not asked"):
        GradientAT()(read, plain, {})
    with pytest.raises(MismatchError, match="no labels"):
        GradientAT().bind(read, read, cast(Task, None), Facts((4,), 3, ("a", "b", "c"), 2, labelled=False))
    with pytest.raises(RecipeError, match="did you mean 'norm'"):
        GradientAT(distance=cast(Any, "norms"))
