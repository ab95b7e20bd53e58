"""`attention.at` against a loop, in both of its forms, and the maps that it compares."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.attention.at import AT, at_loss


def unit(feature: Any, power: float) -> list[float]:
    """The attention map of one example's map [D][H][W], as a unit vector."""
    places = [sum(abs(channel[h][w]) ** power for channel in feature) for h in range(len(feature[0])) for w in range(len(feature[0][0]))]
    norm = math.sqrt(sum(place**2 for place in places))
    return [place / norm for place in places]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_both_distances_equal_a_loop(power: float) -> None:
    student, teacher = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 6, 4, 5, dtype=torch.float64)
    for row in range(3):
        squares = sum((a - b) ** 2 for a, b in zip(unit(student[row].tolist(), power), unit(teacher[row].tolist(), power), strict=True))
        assert at_loss(student, teacher, power=power)[row].item() == pytest.approx(math.sqrt(squares) / 20, rel=1e-9)
        assert at_loss(student, teacher, power=power, distance="square")[row].item() == pytest.approx(squares / 20, rel=1e-9)


@pytest.mark.parametrize("distance", ["norm", "square"])
def test_the_gradient_is_that_of_finite_differences(distance: Any) -> None:
    student, teacher = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 1, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: at_loss(x, teacher, distance=distance), student, rtol=1e-6, atol=1e-8)


def test_only_where_a_feature_is_strong_counts() -> None:
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 3)
    loss = at_loss(student, teacher)
    assert torch.allclose(at_loss(-7 * student[:, [2, 0, 3, 1]], 0.1 * teacher), loss, rtol=1e-5)
    apart = torch.eye(2).reshape(2, 1, 1, 2)
    assert torch.allclose(at_loss(apart, apart.flip(0)), torch.full((2,), math.sqrt(2) / 2)), "disjoint maps are as far apart as unit vectors can be"


def test_the_authors_form_is_the_mean_of_squared_differences() -> None:
    student, teacher = torch.randn(4, 3, 6, 6), torch.randn(4, 5, 6, 6)
    ours, theirs = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher))
    assert torch.allclose(at_loss(student, teacher, distance="square").mean(), F.mse_loss(ours, theirs), rtol=1e-5)


def test_the_larger_map_is_averaged_down_and_sequences_are_maps_of_one_row() -> None:
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 5, 4, 6)
    maps = [F.adaptive_avg_pool2d(x.square().sum(1, keepdim=True), (4, 4)).sqrt() for x in (student, teacher)]
    assert torch.allclose(at_loss(student, teacher), at_loss(*maps), rtol=1e-4)
    row = teacher[:, :, :1].squeeze(2).transpose(1, 2)
    assert torch.allclose(at_loss(row, row.flip(1)), at_loss(teacher[:, :, :1], teacher[:, :, :1].flip(3)))


def test_tokens_of_patches_are_a_map_and_a_class_token_is_none() -> None:
    student, teacher = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 2, 4)
    tokens = torch.cat([torch.randn(2, 1, 5), teacher.flatten(2).transpose(1, 2)], 1)
    assert torch.allclose(at_loss(student, tokens), at_loss(student, teacher))
    assert torch.allclose(at_loss(tokens, student), at_loss(teacher, student))


def test_a_silent_map_is_no_map_and_moves_nothing() -> None:
    student, teacher = torch.zeros(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3)
    loss = at_loss(student, teacher)
    loss.sum().backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(1 / 9)
    assert not student.grad.any()


@given(
    n=st.sampled_from([1, 3]), channels=st.tuples(st.integers(1, 3), st.integers(1, 3)), size=st.tuples(*[st.integers(1, 5)] * 4),
    scale=st.sampled_from([1e-4, 1.0, 1e4]), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_finite_for_every_shape_scale_and_dtype(n: int, channels: tuple[int, int], size: tuple[int, int, int, int], scale: float, dtype: torch.dtype) -> None:
    student = (scale * torch.randn(n, channels[0], size[0], size[1])).to(dtype).requires_grad_()
    loss = at_loss(student, (scale * torch.randn(n, channels[1], size[2], size[3])).to(dtype))
    check_sound(loss, student)


def test_bound_to_two_pairs_it_sums_them() -> None:
    features: list[dict[str, Tensor]] = [{"a": torch.randn(2, 3, 4, 4), "b": torch.randn(2, 3, 2, 2)} for _ in range(2)]
    student, teacher = (Knowledge({"main": Dense(torch.zeros(2, 3))}, one) for one in features)
    at = AT(layers={"a": "a", "b": "b"})
    at.bind(student, teacher, cast(Task, None), None)
    expected = at_loss(features[0]["a"], features[1]["a"]) + at_loss(features[0]["b"], features[1]["b"])
    assert torch.allclose(at(student, teacher, {}), expected)
    assert not list(at.parameters())


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 4, 3, 3\].*maps"):
        at_loss(torch.zeros(2, 4), torch.zeros(2, 4, 3, 3))
    with pytest.raises(MismatchError, match=r"\[2, 3, 4\].*\[2, 5, 4\].*one length"):
        at_loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
    with pytest.raises(MismatchError, match=r"\[1, 3, 4, 4\].*\[2, 3, 4, 4\]"):
        at_loss(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(RecipeError, match=r"power is 0\.5; .*at least 1"):
        AT(power=0.5)
    with pytest.raises(RecipeError, match="did you mean 'square'"):
        AT(distance=cast(Any, "squares"))
