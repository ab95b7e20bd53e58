"""`adversarial.feature_discriminator`: shapes, players, and what each side pays for several layers."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.adversarial.feature_discriminator import FeatureDiscriminator

NO_TASK = cast(Task, None)


def says(*features: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(torch.zeros(len(features[0]), 2))}, {f"l{index}": feature for index, feature in enumerate(features)})


def bound(student: Knowledge, teacher: Knowledge, **options: Any) -> FeatureDiscriminator:
    contest = FeatureDiscriminator(layers={path: path for path in student.features}, **options)
    contest.bind(student, teacher, NO_TASK, None)
    return contest


def test_each_side_pays_the_sum_over_its_layers() -> None:
    student = says(torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64))
    teacher = says(torch.randn(5, 7, 5, 3, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64))
    contest = bound(student, teacher)
    ours = [project(feature) for project, feature in zip(contest.projectors, student.features.values(), strict=True)]
    assert [tuple(one.shape) for one in ours] == [(5, 7, 5, 3), (5, 6)]
    paid, cost = torch.zeros(5).double(), torch.zeros(5).double()
    for score, fake, real in zip(contest.discriminators, ours, teacher.features.values(), strict=True):
        paid += -score(fake).sigmoid().log()
        cost += -score(real).sigmoid().log() - (1 - score(fake).sigmoid()).log()
    torch.testing.assert_close(contest(student, teacher, {}), paid)
    torch.testing.assert_close(contest.oppose(student, teacher, {}), cost)


def test_a_map_s_score_is_the_mean_over_places_and_a_sequence_s_that_over_its_own() -> None:
    maps, sequence = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 3)
    contest = bound(says(maps, sequence), says(maps, sequence), hidden=5)
    conv, perceptron = contest.discriminators
    assert conv(maps).shape == perceptron(sequence).shape == (2,)
    one, two, three = (layer for layer in conv.get_submodule("layers").children() if not isinstance(layer, torch.nn.LeakyReLU))
    by_hand = three(F.leaky_relu(two(F.leaky_relu(one(maps), 0.2)), 0.2)).mean((1, 2, 3))
    torch.testing.assert_close(conv(maps), by_hand)
    torch.testing.assert_close(perceptron(sequence), torch.stack([perceptron(sequence[:, place]) for place in range(4)]).mean(0))
    assert not any(name.startswith("running") for name, _ in contest.named_buffers())


@pytest.mark.parametrize("loss", ["plain", "wgan_gp"])
def test_the_projector_learns_with_the_student_and_not_with_the_opponent(loss: str) -> None:
    f, g = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(4, 6, 5, 5, requires_grad=True)
    contest = bound(says(f), says(g), loss=loss)
    mine = {id(weight) for weight in contest.opponent.parameters()}
    projector = [weight for weight in contest.parameters() if id(weight) not in mine]
    assert len(projector) == 2
    contest.oppose(says(f), says(g), {}).sum().backward()
    assert f.grad is None and g.grad is None and all(weight.grad is None for weight in projector)
    assert all(weight.grad is not None for weight in contest.opponent.parameters())
    contest(says(f), says(g), {}).sum().backward()
    assert f.grad is not None and g.grad is None and all(weight.grad is not None and weight.grad.any() for weight in projector)


def test_the_scores_are_computed_in_float32_whatever_the_forward_pass_is_in() -> None:
    f, g = torch.randn(4, 6), torch.randn(4, 6)
    contest = bound(says(f), says(g), loss="wgan_gp")
    exact = contest(says(f), says(g), {})
    torch.manual_seed(1)
    opposed = contest.oppose(says(f), says(g), {})
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contest(says(f), says(g), {}), exact)
        torch.manual_seed(1)
        assert torch.equal(contest.oppose(says(f), says(g), {}), opposed)


def test_how_often_they_are_right_is_the_mean_over_layers() -> None:
    student, teacher = says(torch.randn(5, 6), torch.randn(5, 3)), says(torch.randn(5, 6), torch.randn(5, 3))
    contest = bound(student, teacher)
    sides = zip(contest.discriminators, contest.projectors, student.features.values(), teacher.features.values(), strict=True)
    each = [((score(project(ours)) < 0).float() + (score(theirs) > 0).float()) / 2 for score, project, ours, theirs in sides]
    torch.testing.assert_close(contest.told_apart(student, teacher), (each[0] + each[1]) / 2)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5, 3, 3\]"):
        bound(says(torch.zeros(2, 4)), says(torch.zeros(2, 5, 3, 3)))
    with pytest.raises(MismatchError, match=r"\[2, 3, 1, 1, 1\]"):
        bound(says(torch.zeros(2, 3, 1, 1, 1)), says(torch.zeros(2, 3, 1, 1, 1)))
    with pytest.raises(RecipeError, match="no loss 'plane' for FeatureDiscriminator; did you mean 'plain'"):
        FeatureDiscriminator(loss=cast(Any, "plane"))


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 3), ours=st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda one: len(one) != 2), wide=st.integers(1, 4),
    scale=st.sampled_from([1e-4, 1.0, 1e4]), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    loss=st.sampled_from(["plain", "wgan_gp"]),
)  # fmt: skip
def test_any_shape_scale_and_precision_is_finite(n: int, ours: list[int], wide: int, scale: float, dtype: torch.dtype, loss: Any) -> None:
    f, g = (scale * torch.randn(n, *ours)).to(dtype).requires_grad_(), (scale * torch.randn(n, *[wide] * len(ours))).to(dtype)
    contest = bound(says(f), says(g), loss=loss, hidden=4)
    for told in (contest(says(f), says(g), {}), contest.oppose(says(f), says(g), {})):
        assert told.shape == (n,) and told.isfinite().all() and told.dtype == torch.promote_types(dtype, torch.float32)
        told.sum().backward()
    assert f.grad is not None and f.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in contest.parameters())
