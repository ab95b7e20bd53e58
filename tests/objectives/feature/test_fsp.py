"""`feature.fsp` against a loop, and the order of its layers."""

from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.fsp import FSP, fsp_loss

NO_TASK = cast(Task, None)


def naive(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], reduction: str) -> Tensor:
    """Maps of one size: one product after the other."""
    losses: list[Tensor] = []
    for a, b, c, d in zip(*student, *teacher, strict=True):
        places = a.shape[1] * a.shape[2]
        total = torch.zeros(())
        for i in range(len(a)):
            for j in range(len(b)):
                ours = sum((a[i, y, x] * b[j, y, x] for y in range(a.shape[1]) for x in range(a.shape[2])), torch.zeros(())) / places
                theirs = sum((c[i, y, x] * d[j, y, x] for y in range(a.shape[1]) for x in range(a.shape[2])), torch.zeros(())) / places
                total = total + (ours - theirs) ** 2
        losses.append(total / (len(a) * len(b)) if reduction == "mean" else total)
    return torch.stack(losses)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_value_and_gradient_equal_a_loop(reduction: Literal["sum", "mean"]) -> None:
    one, other = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = (torch.randn(2, 3, 2, 2).double(), torch.randn(2, 4, 2, 2).double())
    loss, loop = fsp_loss((one, other), teacher, reduction=reduction), naive((one, other), teacher, reduction)
    assert torch.allclose(loss, loop, rtol=1e-6)
    for found, wanted in zip(torch.autograd.grad(loss.sum(), (one, other)), torch.autograd.grad(loop.sum(), (one, other)), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-12)


def test_each_side_pools_its_larger_map_by_maxima_or_by_averages() -> None:
    a, b, c, d = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 3, 2, 2), torch.randn(2, 4, 2, 6)
    assert torch.allclose(fsp_loss((a, b), (c, d)), fsp_loss((F.max_pool2d(a, 2), b), (c, F.max_pool2d(d, (1, 3)))), rtol=1e-5)
    assert torch.allclose(fsp_loss((a, b), (c, d), pool="mean"), fsp_loss((F.avg_pool2d(a, 2), b), (c, F.avg_pool2d(d, (1, 3)))), rtol=1e-5)


def test_shuffling_the_places_of_both_maps_alike_changes_nothing() -> None:
    one, other, teacher = (
        torch.randn(2, 3, 1, 6).double(),
        torch.randn(2, 4, 1, 6).double(),
        (torch.randn(2, 3, 2, 2).double(), torch.randn(2, 4, 2, 2).double()),
    )
    order = torch.randperm(6)
    assert torch.allclose(fsp_loss((one[..., order], other[..., order]), teacher), fsp_loss((one, other), teacher))


def test_the_layers_flow_one_into_the_next() -> None:
    student = Knowledge({}, {name: torch.randn(2, width, 4, 4) for name, width in (("a", 2), ("b", 3), ("c", 4))})
    teacher = Knowledge({}, {name: torch.randn(2, width, 4, 4) for name, width in (("x", 2), ("y", 3), ("z", 5))})
    fsp = FSP(layers={"a": "x", "b": "y"})
    fsp.bind(student, teacher, NO_TASK, None)
    assert not fsp.state_dict()
    a, b, x, y = student.features["a"], student.features["b"], teacher.features["x"], teacher.features["y"]
    assert torch.allclose(fsp(student, teacher, {}), fsp_loss((a, b), (x, y)))
    longer = FSP(layers={"a": "x", "b": "y", "c": "z"})
    longer.bind(student, teacher, NO_TASK, None)
    assert [tuple(p.shape) for p in longer.parameters()] == [(5, 4, 1, 1), (5,)], "only the third layer's channels differ"
    last = longer.projectors[2](student.features["c"])
    assert torch.allclose(longer(student, teacher, {}), fsp_loss((a, b), (x, y)) + fsp_loss((b, last), (y, teacher.features["z"])), rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    maps = torch.zeros(2, 3, 2, 2)
    with pytest.raises(MismatchError, match=r"\[2, 3, 3\].*\[2, 3, 4\]"):
        fsp_loss((maps, maps), (maps, torch.zeros(2, 4, 2, 2)))
    with pytest.raises(MismatchError, match="maps"):
        fsp_loss((maps, torch.zeros(2, 3)), (maps, torch.zeros(2, 3)))
    with pytest.raises(RecipeError, match="a alone"):
        FSP(layers={"a": "x"})
    with pytest.raises(RecipeError, match=r"no pool 'maxx'.*did you mean 'max'"):
        FSP(pool=cast(Any, "maxx"))
    with pytest.raises(RecipeError, match="no reduction"):
        FSP(reduction=cast(Any, "none"))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1, 1, 1), (2, 3, 5, 4), (1, 4, 1, 7)]),
    st.sampled_from([(1, 1), (3, 2), (6, 6)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from(["max", "mean"]),
)
def test_any_maps_have_a_finite_loss_and_gradient(shape: tuple[int, ...], size: tuple[int, int], scale: float, dtype: torch.dtype, pool: Any) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student = (torch.randn(shape) * scale).to(dtype).requires_grad_()
    after, earlier, later = ((torch.randn(shape[0], width, *size) * scale).to(dtype) for width in (2, shape[1], 2))
    loss = fsp_loss((student, after), (earlier, later), pool=pool)
    check_sound(loss, student)
