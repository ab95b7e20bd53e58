"""DAFL's three losses against naive loops, and what they prefer."""

import math

import pytest
import torch

from limbeck.core.errors import MismatchError
from limbeck.core.lookup import build
from limbeck.core.tap import Tap
from limbeck.schemes._statistics import running_norms, whole_gap
from limbeck.schemes.dafl import activation_loss, information_entropy_loss, one_hot_loss
from limbeck.schemes.dfad import l1_gap

from .test_synthetic import batch, cnn, scheme


def test_the_losses_are_the_papers() -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    probabilities = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits.tolist()]
    one_hot = -sum(math.log(max(row)) for row in probabilities) / 5
    mean = [sum(row[k] for row in probabilities) / 5 for k in range(4)]
    assert math.isclose(float(one_hot_loss(logits)), one_hot, rel_tol=1e-12)
    assert math.isclose(float(activation_loss(features)), -sum(abs(f) for row in features.tolist() for f in row) / 30, rel_tol=1e-12)
    assert math.isclose(float(information_entropy_loss(logits)), sum(p * math.log(p) for p in mean), rel_tol=1e-12)


def test_sure_answers_that_are_even_over_the_classes_are_best() -> None:
    sure = 50 * torch.eye(3)
    assert one_hot_loss(sure) < 1e-6 < one_hot_loss(torch.eye(3))
    assert torch.isclose(information_entropy_loss(sure), -torch.tensor(3.0).log())
    same = sure[:1].expand(3, -1)
    assert abs(information_entropy_loss(same)) < 1e-6, "one class alone: the most that it can be"
    assert information_entropy_loss(1e4 * torch.eye(3)[:2]).isfinite(), "a class that never comes has probability zero"


def test_the_generator_pays_the_weighted_sum_and_what_the_paper_has_not_only_where_it_is_asked_for() -> None:
    images = torch.rand(6, 1, 8, 8)
    teacher = cnn(1, 4).eval()
    norms = running_norms(teacher, "it")
    with torch.no_grad(), Tap(teacher, [*norms, "head:in"]) as tap:
        logits = teacher(images)
    student = cnn(2).train()(images)
    plain = one_hot_loss(logits) + 0.1 * activation_loss(tap.features["head:in"]) + 5 * information_entropy_loss(logits)
    cost, parts = scheme("dafl").train().price(images)  # pyright: ignore[reportCallIssue]
    assert torch.isclose(cost, plain, rtol=1e-5) and list(parts) == ["one_hot", "activation", "entropy"]
    cost, _ = scheme("dafl", bn=2.0, game=0.5).train().price(images)  # pyright: ignore[reportCallIssue]
    assert torch.isclose(cost, plain + 2 * whole_gap(tap.features, norms, relative=True) - 0.5 * l1_gap(student, logits).mean(), rtol=1e-4)


def test_the_student_is_taught_on_the_very_images_of_the_generators_step() -> None:
    made = scheme("dafl").train()
    made(batch(), "generator")
    kept = made._made[0].clone()  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    assert torch.equal(made._images(8), kept)  # pyright: ignore[reportCallIssue]
    assert not torch.equal(made._images(8), kept), "further steps of the student have images of their own"  # pyright: ignore[reportCallIssue]


def test_batch_norm_statistics_need_batch_norm() -> None:
    mlp = build("models", "mlp", {"widths": [4]}, in_shape=(1, 8, 8), classes=3)
    scheme("dafl", teacher=mlp)
    with pytest.raises(MismatchError, match="dafl with bn reads the running statistics"):
        scheme("dafl", teacher=mlp, bn=1.0)
