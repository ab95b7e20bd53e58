"""`feature.semckd` against a loop, its limits, and batches of other sizes than the first."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.semckd import SemCKD, semckd_loss

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
LAYERS = {"student": ["a", "b"], "teacher": ["a", "b", "c"]}


def naive(queries: Tensor, keys: Tensor, distances: Tensor) -> Tensor:
    rows = []
    for q, k, d in zip(queries, keys, distances, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for s in range(len(q)):
            energies = [torch.exp(torch.stack([a * b for a, b in zip(q[s], other, strict=True)]).sum()) for other in k]
            total = total + sum(energy / sum(energies) * d[s, t] for t, energy in enumerate(energies))
        rows.append(total / len(q))
    return torch.stack(rows)


def test_it_equals_a_loop_value_and_gradient() -> None:
    parts = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((3, 2, 4), (3, 5, 4), (3, 2, 5))]
    loss, slow = semckd_loss(*parts), naive(*parts)
    assert torch.allclose(loss, slow, rtol=1e-6)
    for fast, plain in zip(torch.autograd.grad(loss.sum(), parts), torch.autograd.grad(slow.sum(), parts), strict=True):
        assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-12)


def test_sure_attention_picks_one_layer_and_none_takes_the_mean() -> None:
    distances = torch.rand(2, 1, 3)
    assert torch.allclose(semckd_loss(torch.zeros(2, 1, 4), torch.randn(2, 3, 4), distances), distances.mean((1, 2)))
    keys = torch.eye(3).expand(2, 3, 3)
    assert torch.allclose(semckd_loss(100 * keys[:, 1:2], keys, distances), distances[:, 0, 1])


def sides(n: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Knowledge, Knowledge]:
    small, large = {"a": (2, 6, 6), "b": (3, 3, 2)}, {"a": (3, 5, 5), "b": (4, 3, 3), "c": (5, 1, 1)}
    ours, theirs = ({name: (scale * torch.randn(n, *shape)).to(dtype) for name, shape in one.items()} for one in (small, large))
    said = {"main": Dense(torch.zeros(n, 2))}
    return Knowledge(said, {name: x.requires_grad_() for name, x in ours.items()}), Knowledge(said, theirs)


def bound(student: Knowledge, teacher: Knowledge, **options: Any) -> SemCKD:
    sem = SemCKD(layers=LAYERS, **options)
    sem.bind(student, teacher, cast(Task, None), None)
    return sem


def test_every_layer_is_weighed_against_every_layer_by_weights_that_add_up_to_one() -> None:
    student, teacher = sides(8)
    sem = bound(student, teacher)
    assert (len(sem.queries), len(sem.keys), len(sem.projections)) == (2, 3, 6)
    with torch.no_grad():
        for project in sem.projections:
            cast(torch.nn.Sequential, project)[-1].get_parameter("weight").zero_()
    for x in teacher.features.values():
        x.fill_(2.0)
    assert sem(student, teacher, {}).item() == pytest.approx(4), "where all distances are 4, so is every weighted mean"


def test_a_smaller_batch_is_filled_up_and_a_larger_one_refused() -> None:
    student, teacher = sides(4)
    sem = bound(student, teacher, batch_size=8)
    few = sem._similar(student.features["a"])
    assert few.shape == (4, 8)
    assert not few[:, 4:].any()
    assert few[1, 2].item() == pytest.approx((student.features["a"][1] * student.features["a"][2]).sum().item(), rel=1e-5)
    assert math.isfinite(sem(student, teacher, {}).item())
    with pytest.raises(MismatchError, match=r"batches of 4.*\b8\b.*batch_size: 8"):
        bound(student, teacher)(*sides(8), {})


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES)
def test_every_batch_scale_and_precision_is_finite(n: int, scale: float, dtype: torch.dtype) -> None:
    student, teacher = sides(n, scale, dtype)
    loss = bound(student, teacher)(student, teacher, {})
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.features.values())


def test_auto_takes_the_stages_of_both() -> None:
    sem = SemCKD()
    shapes = {"one": (2, 3, 8, 8), "two": (2, 3, 4, 4), "head": (2, 5)}
    said = {"main": Dense(torch.zeros(2, 5))}
    sem.choose(Knowledge(said, shapes=shapes), Knowledge(said, shapes=shapes))
    assert list(sem.pairs) == [("one", "one"), ("one", "two"), ("two", "one"), ("two", "two")]
    assert sem.said == ("SemCKD weighs one, two of the student against one, two of the teacher",)


def test_what_cannot_be_is_refused() -> None:
    for layers in ({"student": ["a"]}, {"student": ["a"], "teacher": []}, {"a": ["a"], "teacher": ["a"]}):
        with pytest.raises(RecipeError, match=r"student: \[layer1"):
            SemCKD(layers=layers)
    with pytest.raises(RecipeError, match="batch_size is 1"):
        SemCKD(batch_size=1)
    with pytest.raises(MismatchError, match=r"\[2, 1, 3\].*\[2, 1, 4\]"):
        semckd_loss(torch.zeros(2, 1, 3), torch.zeros(2, 1, 4), torch.zeros(2, 1, 1))
    flat = Knowledge({}, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3), "c": torch.zeros(2, 3)})
    with pytest.raises(MismatchError, match=r"'a' is \[2, 3\].*maps"):
        SemCKD(layers=LAYERS).bind(flat, flat, cast(Task, None), None)
