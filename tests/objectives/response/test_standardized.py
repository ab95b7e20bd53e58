"""`response.standardized`: z-scores against a loop, what they forget, and an objective inside that stays what it is."""

import statistics
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.schedule import Linear
from limbeck.core.task import Task
from limbeck.objectives.feature.fitnet import FitNet
from limbeck.objectives.response.dist import DIST
from limbeck.objectives.response.dkd import DKD
from limbeck.objectives.response.kd import KD, kd_loss
from limbeck.objectives.response.label_smoothing import LabelSmoothing
from limbeck.objectives.response.soft_cross_entropy import SoftCrossEntropy
from limbeck.objectives.response.standardized import Standardized, standardized_logits

NO_TASK = cast(Task, None)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.sampled_from([1e-4, 1.0, 1e4]), st.integers(0, 10**6))
def test_it_is_the_z_score_of_a_loop(n: int, classes: int, scale: float, seed: int) -> None:
    logits = 5 + scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for row in range(n):
        values = logits[row].tolist()
        mean, over_c, over_less = statistics.fmean(values), statistics.pstdev(values), statistics.stdev(values)
        assert standardized_logits(logits)[row].tolist() == pytest.approx([(value - mean) / over_c for value in values], rel=1e-6)
        found = standardized_logits(logits, deviation="sample")[row].tolist()
        assert found == pytest.approx([(value - mean) / over_less for value in values], rel=1e-6)


def test_its_gradient_is_that_of_its_value_and_torchs() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardized_logits, logits)
    authors = (logits - logits.mean(-1, keepdim=True)) / (1e-7 + logits.std(-1, keepdim=True))
    assert torch.allclose(standardized_logits(logits, deviation="sample"), authors, rtol=1e-6)


def test_shift_and_scale_are_forgotten_rank_is_kept_and_values_are_bounded() -> None:
    logits = 100 * torch.randn(64, 10)
    found = standardized_logits(logits)
    assert torch.allclose(standardized_logits(3 * logits + 7), found, atol=1e-4)
    assert torch.equal(found.argsort(-1), logits.argsort(-1))
    assert found.abs().max() <= 3 + 1e-5


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.0, 1e-4, 1.0, 1e4]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 4), st.integers(1, 5)
)
def test_values_and_gradients_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int) -> None:
    logits = (scale * torch.randn(n, 2, classes)).to(dtype).requires_grad_()
    found = standardized_logits(logits)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found.square().sum() + found[..., 0].sum(), logits)[0]).all()


def test_the_objective_inside_sees_z_scores_of_every_output_and_the_rest_as_it_is() -> None:
    seen: list[Knowledge] = []

    class Looks(KD):
        def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Any) -> Any:
            seen.append(student)
            return kd_loss(student.main.logits, cast(Knowledge, teacher).main.logits, temperature=2.0)

    student, teacher = 5 * torch.randn(4, 6), torch.randn(4, 6)
    feature, mask = torch.randn(4, 3), torch.tensor([True, False, True, True])
    said = Knowledge({"main": Dense(student), "early": Dense(2 * student)}, {"layer": feature}, mask)
    loss = Standardized(of=Looks())(said, Knowledge({"main": Dense(teacher)}), {})
    assert torch.allclose(loss, kd_loss(standardized_logits(student), standardized_logits(teacher), temperature=2.0))
    assert seen[0].features["layer"] is feature
    assert seen[0].mask is mask
    assert torch.allclose(seen[0].outputs["early"].logits, seen[0].main.logits, atol=1e-5)
    assert torch.equal(said.main.logits, student)


@pytest.mark.parametrize("inside", [KD(), DKD(), DIST(), SoftCrossEntropy()])
def test_it_is_what_is_inside(inside: Objective) -> None:
    outside = Standardized(of=inside)
    assert (outside.batchwise, outside.needs, outside.perfect) == (inside.batchwise, inside.needs, inside.perfect)
    student, teacher = torch.randn(2, 4, 5).unbind()
    sides = Knowledge({"main": Dense(student)}), Knowledge({"main": Dense(teacher)})
    assert outside(*sides, {"label": torch.arange(4)}).shape == inside(*sides, {"label": torch.arange(4)}).shape


def test_what_is_inside_ships_and_follows_the_steps() -> None:
    class Ships(KD):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1

        def graft(self, student: nn.Module) -> nn.Module:
            return nn.Sequential(student)

    inside, student = Ships(), nn.Linear(2, 2)
    outside = Standardized(of=inside)
    outside.after_step()
    grafted = outside.graft(student)
    assert inside.steps == 1
    assert isinstance(grafted, nn.Sequential)
    assert grafted[0] is student


def test_a_recipe_builds_what_is_inside_with_its_schedules() -> None:
    objective = build("objectives", "standardized", {"of": {"kind": "kd", "temperature": {"kind": "linear", "start": 4, "end": 2}}, "deviation": "sample"})
    assert isinstance(objective.of, KD)
    assert objective.of.temperature == Linear(start=4, end=2)
    assert [type(module) for module in objective.modules() if isinstance(module, Objective)] == [Standardized, KD], "a scheme's clock reaches both"


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (LabelSmoothing(), "LabelSmoothing reads none"),
        ({"kind": "feature.fitnet", "layers": {"a": "b"}}, "FitNet reads none"),
        ({"temperature": 2.0}, r"names none.*kind: response\.kd"),
        ({"kind": "response.kd", "weight": 2.0}, "weight belongs to response.standardized"),
        ({"kind": "response.kd", "temprature": 2.0}, "did you mean 'temperature'"),
    ],
)
def test_what_cannot_stand_inside_is_refused(of: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Standardized(of=of)


def test_layers_left_to_be_paired_are_refused_as_soon_as_they_are() -> None:
    outside = Standardized(of=FitNet())
    assert outside.undecided
    shapes = {"stem": (2, 4, 8, 8), "stage": (2, 8, 4, 4)}
    said = Knowledge({"main": Dense(torch.zeros(2, 3))}, shapes=shapes)
    with pytest.raises(RecipeError, match="FitNet reads none"):
        outside.choose(said, said)


def test_answers_that_are_no_choice_of_one_class_are_refused_also_where_what_is_inside_takes_them() -> None:
    numbers = Knowledge({"main": Dense(torch.zeros(2, 3), "identity")})
    with pytest.raises(MismatchError, match=r"Standardized.*softmax.*identity"):
        build("objectives", "standardized", {"of": {"kind": "logit_matching"}}).bind(numbers, numbers, NO_TASK, None)
    with pytest.raises(RecipeError, match="did you mean 'sample'"):
        Standardized(of=KD(), deviation=cast(Any, "samples"))
