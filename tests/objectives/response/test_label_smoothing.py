"""`response.label_smoothing` against a loop, PyTorch's own, and distillation from a uniform teacher."""

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.schedule import Cosine, Decay
from limbeck.core.task import Facts, Task
from limbeck.objectives.response.label_smoothing import LabelSmoothing, label_smoothing_loss
from limbeck.objectives.response.soft_cross_entropy import soft_cross_entropy_loss


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.floats(0, 1), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(n: int, classes: int, smoothing: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits, labels = 2 * torch.randn(n, classes, generator=draw, dtype=torch.float64), torch.randint(classes, (n,), generator=draw)
    loss = label_smoothing_loss(logits.requires_grad_(), labels, smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    for row in range(n):
        odds = [math.exp(z) for z in logits[row].tolist()]
        q = [odd / sum(odds) for odd in odds]
        mixed = [(1 - smoothing) * (c == int(labels[row])) + smoothing / classes for c in range(classes)]
        assert loss[row].item() == pytest.approx(-sum(m * math.log(each) for m, each in zip(mixed, q, strict=True)), rel=1e-6, abs=1e-12)
        assert gradient[row].tolist() == pytest.approx([each - m for m, each in zip(mixed, q, strict=True)], rel=1e-6, abs=1e-12)


def test_it_is_pytorchs_and_between_the_cross_entropy_and_a_teacher_that_knows_nothing() -> None:
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    assert torch.allclose(label_smoothing_loss(logits, labels, smoothing=0.3), F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3))
    assert torch.allclose(label_smoothing_loss(logits, labels, smoothing=0.0), F.cross_entropy(logits, labels, reduction="none"))
    uniform = soft_cross_entropy_loss(logits, torch.zeros(6, 5), temperature=1.0)
    assert torch.allclose(label_smoothing_loss(logits, labels, smoothing=1.0), uniform)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 4), st.integers(1, 5))
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int) -> None:
    logits = (scale * torch.randn(n, 2, classes)).to(dtype).requires_grad_()
    loss = label_smoothing_loss(logits, torch.randint(classes, (n, 2)))
    assert loss.shape == (n, 2)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan, Cosine(start=0.1, end=2.0), Decay(start=1.5)])
def test_a_share_beyond_all_is_refused(smoothing: float | Cosine | Decay) -> None:
    with pytest.raises(RecipeError, match="smoothing is"):
        LabelSmoothing(smoothing=smoothing)


def test_it_asks_no_teacher_but_labels_and_a_choice_of_one_class() -> None:
    objective, said = LabelSmoothing(smoothing=0.2), Knowledge({"main": Dense(torch.randn(4, 3))})
    assert objective.needs.teacher is None
    objective.bind(said, None, cast(Task, None), None)
    labels = torch.tensor([0, 1, 2, -100])
    found = objective(said, None, {"label": labels})
    assert torch.equal(found[:3], label_smoothing_loss(said.main.logits[:3], labels[:3], smoothing=0.2))
    assert found[3].isnan()
    with pytest.raises(MismatchError, match=r"softmax.*identity.*response\.regression_kd"):
        objective.bind(Knowledge({"main": Dense(torch.zeros(4, 3), "identity")}), None, cast(Task, None), None)
    with pytest.raises(MismatchError, match="LabelSmoothing needs labels"):
        objective.bind(said, None, cast(Task, None), Facts(in_shape=(1,), classes=3, class_names=("a", "b", "c"), examples=2, labelled=False))
    with pytest.raises(MismatchError, match=r"\[2\].*\[4, 3\]"):
        objective(said, None, {"label": labels[:2]})
