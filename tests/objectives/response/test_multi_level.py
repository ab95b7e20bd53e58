"""`response.multi_level` against a loop in float64, its instance level as `response.kd`, and what each level cannot see."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.core.schedule import Linear
from limbeck.objectives.response.kd import kd_loss
from limbeck.objectives.response.multi_level import MultiLevel, multi_level_loss

ONLY: dict[str, dict[str, Any]] = {
    "instance": {"batch": 0.0, "category": 0.0},
    "batch": {"instance": 0.0, "category": 0.0},
    "category": {"instance": 0.0, "batch": 0.0},
}


def naive(student: list[list[float]], teacher: list[list[float]], temperatures: list[float], instance: float, batch: float, category: float) -> float:
    n, classes, total = len(student), len(student[0]), 0.0
    for temperature in temperatures:
        q, p = ([[math.exp(z / temperature) / sum(math.exp(other / temperature) for other in row) for z in row] for row in side] for side in (student, teacher))
        total += instance * temperature**2 * sum(p[i][c] * math.log(p[i][c] / q[i][c]) for i in range(n) for c in range(classes)) / n
        for i in range(n):
            for j in range(n):
                total += batch / n * sum(q[i][c] * q[j][c] - p[i][c] * p[j][c] for c in range(classes)) ** 2
        for c in range(classes):
            for d in range(classes):
                total += category / classes * sum(q[i][c] * q[i][d] - p[i][c] * p[i][d] for i in range(n)) ** 2
    return total


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.floats(0.5, 8), min_size=1, max_size=3), st.tuples(*[st.floats(0, 3)] * 3), st.integers(0, 10**6))
def test_value_and_gradient_equal_a_loop(n: int, classes: int, temperatures: list[float], weights: tuple[float, ...], seed: int) -> None:
    student, teacher = torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    instance, batch, category = weights
    loss = multi_level_loss(student.requires_grad_(), teacher, temperatures=temperatures, instance=instance, batch=batch, category=category)
    assert loss.item() == pytest.approx(naive(student.tolist(), teacher.tolist(), temperatures, *weights), rel=1e-6, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    up, down = student.detach().clone(), student.detach().clone()
    up[0, -1] += 1e-5
    down[0, -1] -= 1e-5
    slope = (naive(up.tolist(), teacher.tolist(), temperatures, *weights) - naive(down.tolist(), teacher.tolist(), temperatures, *weights)) / 2e-5
    assert gradient[0, -1].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_its_gradient_is_that_of_its_value() -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(lambda z: multi_level_loss(z, teacher, temperatures=[1.0, 2.0]), student.requires_grad_())


def test_its_instance_level_is_plain_distillation_at_every_temperature() -> None:
    student, teacher = torch.randn(2, 6, 5).unbind()
    expected = kd_loss(student, teacher, temperature=3.0).mean() + kd_loss(student, teacher, temperature=5.0).mean()
    assert torch.allclose(multi_level_loss(student, teacher, temperatures=[3.0, 5.0], **ONLY["instance"]), expected)


def test_the_batch_level_is_blind_to_names_of_classes_and_the_class_level_to_the_order_of_examples() -> None:
    student = torch.randn(6, 5)
    classes, examples = student[:, [1, 2, 3, 4, 0]], student[[5, 0, 1, 2, 3, 4]]
    assert multi_level_loss(classes, student, **ONLY["batch"]) < 1e-10 < multi_level_loss(examples, student, **ONLY["batch"])
    assert multi_level_loss(examples, student, **ONLY["category"]) < 1e-10 < multi_level_loss(classes, student, **ONLY["category"])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(0, 4), st.integers(1, 5))
def test_loss_and_gradient_are_finite_everywhere(scale: float, dtype: torch.dtype, n: int, classes: int) -> None:
    student, teacher = (scale * torch.randn(2, n, classes)).to(dtype).unbind()
    loss = multi_level_loss(student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_a_level_of_weight_zero_is_not_formed_and_nothing_is_a_zero_that_can_go_back() -> None:
    wide = torch.zeros(1, 200_000, requires_grad=True)  # 160 GB, were the classes compared
    assert multi_level_loss(wide, torch.zeros(1, 200_000), temperatures=[1.0], category=0.0) == 0
    nothing = multi_level_loss(wide, torch.ones(1, 200_000), instance=0.0, batch=0.0, category=0.0)
    assert not torch.autograd.grad(nothing, wide)[0].any()


def test_masked_predictions_are_left_out() -> None:
    student, teacher = torch.randn(2, 2, 3, 4).unbind()
    mask = torch.tensor([[True, False, True], [True, True, False]])
    spoilt = Knowledge({"main": Dense(student.masked_fill(~mask[..., None], float("nan")))}, mask=mask)
    assert torch.allclose(MultiLevel()(spoilt, Knowledge({"main": Dense(teacher)}), {}), multi_level_loss(student[mask], teacher[mask]))


def test_a_recipe_gives_a_list_of_temperatures_and_refuses_none() -> None:
    objective = build("objectives", "multi_level", {"temperatures": [1, 4], "category": {"kind": "linear", "epochs": 2}})
    assert (objective.temperatures, objective.category) == ((1.0, 4.0), Linear(epochs=2))
    with pytest.raises(RecipeError, match="no temperatures"):
        MultiLevel(temperatures=())
    with pytest.raises(RecipeError, match="a temperature is 0"):
        MultiLevel(temperatures=(4.0, 0.0))
    with pytest.raises(RecipeError, match="batch is -1"):
        MultiLevel(batch=-1.0)
    with pytest.raises(MismatchError, match=r"\[3, 4\].*\[1, 4\]"):
        multi_level_loss(torch.zeros(3, 4), torch.zeros(1, 4))
