"""`response.logit_matching` against a loop, and as the high-temperature limit of `response.kd` (Hinton et al. 2015, sec. 2.1)."""

from itertools import pairwise
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge, Link
from limbeck.core.task import Task
from limbeck.objectives.response.kd import kd_loss
from limbeck.objectives.response.logit_matching import LogitMatching, logit_matching_loss


def centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def pair(seed: int, *, n: int = 8, classes: int = 7) -> tuple[Tensor, Tensor]:
    student, teacher = (2 * torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).unbind()
    return student, teacher


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 9))
def test_value_and_gradient_equal_a_loop(seed: int, n: int, classes: int) -> None:
    student, teacher = pair(seed, n=n, classes=classes)
    student.requires_grad_()
    loss = logit_matching_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    for row in range(n):
        expected = sum((student[row, c].item() - teacher[row, c].item()) ** 2 for c in range(classes)) / 2 / classes
        assert loss[row].item() == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(gradient, (student - teacher).detach() / classes, rtol=1e-9)


def test_distillation_tends_to_it_as_one_over_the_temperature() -> None:
    student, teacher = map(centred, pair(0))
    limit = logit_matching_loss(student, teacher)
    errors = [(kd_loss(student, teacher, temperature=temperature) - limit).abs().max().item() for temperature in (100.0, 200.0, 400.0, 800.0)]
    assert errors[0] < 0.05 * limit.max().item()
    for before, after in pairwise(errors):
        assert after / before == pytest.approx(0.5, rel=0.05), "twice the temperature, half the error"


def test_the_gradient_tends_to_the_difference_over_the_classes() -> None:
    student, teacher = map(centred, pair(1))
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, temperature=1e5).sum(), student)
    assert torch.allclose(gradient, (student - teacher).detach() / student.shape[-1], atol=1e-4)


def test_logits_of_other_means_tend_to_the_loss_of_the_centred_ones() -> None:
    student, teacher = pair(2)
    student = student + 5
    distilled = kd_loss(student, teacher, temperature=1e5)
    assert torch.allclose(distilled, logit_matching_loss(centred(student), centred(teacher)), rtol=1e-3)
    assert not torch.allclose(distilled, logit_matching_loss(student, teacher), rtol=0.5)


def test_how_the_definitions_of_others_differ() -> None:
    student, teacher = pair(3)
    assert torch.allclose(2 * logit_matching_loss(student, teacher).mean(), F.mse_loss(student, teacher))
    ba_and_caruana = sum((student[n] - teacher[n]).norm() ** 2 for n in range(8)) / (2 * 8)
    assert torch.allclose(7 * logit_matching_loss(student, teacher).mean(), torch.as_tensor(ba_and_caruana))


def test_what_both_exclude_is_matched_and_nan_is_not_hidden() -> None:
    excluded = float("-inf")
    student = torch.tensor([[1.0, excluded]], requires_grad=True)
    loss = logit_matching_loss(student, torch.tensor([[3.0, excluded]]))
    loss.sum().backward()
    assert loss.tolist() == [1.0]
    assert student.grad is not None
    assert student.grad.tolist() == [[-1.0, 0.0]]
    assert logit_matching_loss(torch.tensor([[float("nan")]]), torch.zeros(1, 1)).isnan().all()


@pytest.mark.parametrize("link", ["softmax", "bernoulli", "identity"])
def test_it_takes_answers_of_any_kind(link: Link) -> None:
    said = Knowledge({"main": Dense(torch.zeros(2, 3), link)})
    LogitMatching().bind(said, said, cast(Task, None), None)


def test_unequal_shapes_are_refused_where_they_would_broadcast() -> None:
    with pytest.raises(MismatchError, match=r"\[3, 4\].*\[3, 1\]"):
        logit_matching_loss(torch.zeros(3, 4), torch.zeros(3, 1))
