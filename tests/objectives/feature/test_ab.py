"""`feature.ab` against a loop, and its connector."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.objective import Objective
from limbeck.core.schedule import Clock, Linear
from limbeck.core.tap import Tap
from limbeck.core.task import Task
from limbeck.objectives.feature._connector import Connector
from limbeck.objectives.feature.ab import AB, ab_loss

NO_TASK = cast(Task, None)


def sides(*features: tuple[Tensor, Tensor]) -> tuple[Knowledge, Knowledge]:
    ours, theirs = ({str(place): both[side] for place, both in enumerate(features)} for side in (0, 1))
    outputs = {"main": Dense(torch.zeros(len(features[0][0]), 3))}
    return Knowledge(outputs, ours), Knowledge(outputs, theirs)


def bound(ab: Objective, *features: tuple[Tensor, Tensor]) -> tuple[Knowledge, Knowledge]:
    both = sides(*features)
    ab.bind(*both, NO_TASK, None)
    return both


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_value_and_gradient_equal_a_loop_of_the_paper_s_cases(margin: float) -> None:
    student, teacher = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 2, 2, dtype=torch.float64)
    teacher[0, 0, 0, 0] = 0.0  # a neuron at zero is not active
    total, slopes = torch.zeros(3, dtype=torch.float64), torch.zeros_like(student)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in student.shape)).tolist():
        s, t = student[tuple(index)].item(), teacher[tuple(index)].item()
        if t > 0 and s < margin:
            total[index[0]] += (s - margin) ** 2
            slopes[tuple(index)] = 2 * (s - margin)
        if t <= 0 and s > -margin:
            total[index[0]] += (s + margin) ** 2
            slopes[tuple(index)] = 2 * (s + margin)
    loss = ab_loss(student, teacher, margin=margin)
    assert torch.allclose(loss, total, rtol=1e-9)
    assert torch.allclose(torch.autograd.grad(loss.sum(), student)[0], slopes, rtol=1e-9)


def test_only_the_side_of_the_teacher_counts_and_beyond_the_margin_nothing_does() -> None:
    teacher = torch.randn(4, 9)
    student = torch.randn(4, 9)
    assert torch.equal(ab_loss(student, teacher), ab_loss(student, 1e-3 * teacher))
    assert torch.equal(ab_loss(teacher.sign() * 1.5, 1e-3 * teacher), torch.zeros(4))
    assert ab_loss(torch.zeros(1, 2), torch.tensor([[float("nan"), 1.0]])).isnan().all()


def test_a_connector_is_a_convolution_without_bias_and_a_batch_norm() -> None:
    ab = AB(layers={"0": "0", "1": "1"}, decay=0.5)
    first, second = (torch.randn(4, 3, 8, 8), torch.randn(4, 5, 4, 4)), (torch.randn(4, 6), torch.randn(4, 6))
    student, teacher = bound(ab, first, second)
    connect, same = ab.connectors
    assert isinstance(connect, Connector)
    assert isinstance(same, nn.Identity)
    mapped = torch.einsum("nchw,dc->ndhw", torch.nn.functional.avg_pool2d(first[0], 2), connect.linear.weight[..., 0, 0])
    normed = (mapped - mapped.mean((0, 2, 3), keepdim=True)) / (mapped.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    expected = (0.5 * ab_loss(normed, first[1]) + ab_loss(*second)).mean()
    assert torch.allclose(ab(student, teacher, {}), expected, rtol=1e-4)


def test_batches_of_one_and_of_none_and_vectors() -> None:
    ab = AB(layers={"0": "0"})
    bound(ab, (torch.randn(4, 3), torch.randn(4, 5)))
    one = torch.randn(1, 3, requires_grad=True)
    loss = ab(*sides((one, torch.randn(1, 5))), {})
    loss.backward()
    assert loss.isfinite()
    assert one.grad is not None
    assert one.grad.abs().sum() > 0
    none, _ = sides((torch.randn(2, 3), torch.randn(2, 5)))
    masked = Knowledge(none.outputs, none.features, torch.tensor([False, False]))
    assert ab(masked, sides((torch.randn(2, 3), torch.randn(2, 5)))[1], {}).item() == 0


def test_it_reads_before_a_relu_and_refuses_what_comes_after_it() -> None:
    def network(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    mine, theirs, x = network(2), network(3), torch.randn(4, 1, 6, 6)
    for path, fine in (("2:in", True), ("1", True), ("2", False)):
        with Tap(mine, [path]) as ours, Tap(theirs, [path]) as other:
            mine(x)
            theirs(x)
        ab, knowledge = AB(layers={path: path}), (Knowledge({}, ours.features), Knowledge({}, other.features))
        if fine:
            ab.bind(*knowledge, NO_TASK, None)
            assert ab(*knowledge, {}) > 0
        else:
            with pytest.raises(MismatchError, match=r"student's '2' is never below zero.*:in"):
                ab.bind(*knowledge, NO_TASK, None)


def test_what_does_not_fit_is_refused_and_the_margin_follows_its_schedule() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[2, 4\].*connect"):
        ab_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(MismatchError, match="maps or vectors"):
        bound(AB(layers={"0": "0"}), (torch.randn(2, 3, 4), torch.randn(2, 3, 5)))
    with pytest.raises(RecipeError, match="margin is 0"):
        AB(margin=0.0)
    with pytest.raises(RecipeError, match="decay is -1"):
        AB(decay=-1.0)
    ab = AB(layers={"0": "0"}, margin=Linear(start=1.0, end=3.0))
    both = bound(ab, (torch.randn(4, 3), torch.randn(4, 3)))
    ab.clock = Clock(5, 10)
    assert torch.allclose(ab(*both, {}), ab_loss(both[0].features["0"], both[1].features["0"], margin=2.0).mean())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 1, 1, 1), (2, 3, 5, 4), (1, 4, 7)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_feature_has_a_finite_loss_and_gradient(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student = (torch.randn(shape) * scale).to(dtype).requires_grad_()
    loss = ab_loss(student, torch.randn(shape).to(dtype))
    check_sound(loss, student)
