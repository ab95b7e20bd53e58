"""`feature.reviewkd`: the pyramid's loss against a loop, and which layers of the student each layer of the teacher reaches."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.reviewkd import ReviewKD, _Fusion, reviewkd_loss
from limbeck.schemes.offline import Offline

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """Cells of `[floor(iH/k), ceil((i+1)H/k))`, averaged by hand."""
    rows = []
    for ours, theirs in zip(student, teacher, strict=True):
        high, wide = ours.shape[1:]
        loss, share, whole = ((ours - theirs) ** 2).mean(), 1.0, 1.0
        for k in (4, 2, 1):
            if k >= min(high, wide):
                continue
            gaps = [
                (x[i * high // k : -(-(i + 1) * high // k), j * wide // k : -(-(j + 1) * wide // k)]).mean()
                - (y[i * high // k : -(-(i + 1) * high // k), j * wide // k : -(-(j + 1) * wide // k)]).mean()
                for x, y in zip(ours, theirs, strict=True)
                for i in range(k)
                for j in range(k)
            ]
            share, loss = share / 2, loss + share / 2 * sum(gap**2 for gap in gaps) / len(gaps)
            whole += share
        rows.append(loss / whole)
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (4, 4), (2, 3), (1, 1)])
def test_the_loss_equals_a_loop_value_and_gradient(size: tuple[int, int]) -> None:
    student, teacher = torch.randn(2, 2, 3, *size, dtype=torch.float64).unbind()
    student.requires_grad_()
    loss, slow = reviewkd_loss(student, teacher), naive(student, teacher)
    assert torch.allclose(loss, slow, rtol=1e-6)
    (fast,), (plain,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(slow.sum(), student)
    assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-12)


def test_a_constant_gap_costs_its_square_at_every_size() -> None:
    for size in (1, 2, 3, 8):
        x = torch.randn(2, 3, size, size)
        assert torch.allclose(reviewkd_loss(x + 2, x), torch.full((2,), 4.0), rtol=1e-4)


def sides(n: int = 4, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Knowledge, Knowledge]:
    small, large = {"a": (4, 8, 8), "b": (6, 5, 4), "c": (8,)}, {"a": (5, 8, 8), "b": (7, 4, 4), "c": (9,)}
    ours, theirs = ({name: (scale * torch.randn(n, *shape)).to(dtype) for name, shape in one.items()} for one in (small, large))
    said = {"main": Dense(torch.zeros(n, 2))}
    return Knowledge(said, {name: x.requires_grad_() for name, x in ours.items()}), Knowledge(said, theirs)


def bound(student: Knowledge, teacher: Knowledge) -> ReviewKD:
    review = ReviewKD(layers={"a": "a", "b": "b", "c": "c"})
    review.bind(student, teacher, cast(Task, None), None)
    return review


def test_a_layer_of_the_teacher_reaches_the_students_layers_from_its_depth_down() -> None:
    student, teacher = sides()
    review = bound(student, teacher)
    loss = review(student, teacher, {})
    deeper, told = None, {}
    for name, fuse in zip("cba", reversed(list(review.fusions)), strict=True):
        assert isinstance(fuse, _Fusion)
        ours, theirs = (side.features[name] for side in (student, teacher))
        out, deeper = fuse(ours if ours.ndim == 4 else ours[..., None, None], deeper)
        told[name] = reviewkd_loss(out, theirs if theirs.ndim == 4 else theirs[..., None, None]).mean()
    assert torch.allclose(loss, sum(told.values(), torch.zeros(())))
    for name, reached in (("c", "c"), ("b", "bc"), ("a", "abc")):
        grads = torch.autograd.grad(told[name], list(student.features.values()), retain_graph=True, allow_unused=True)
        assert [one for one, grad in zip("abc", grads, strict=True) if grad is not None] == list(reached)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES)
def test_every_batch_scale_and_precision_is_finite(n: int, scale: float, dtype: torch.dtype) -> None:
    student, teacher = sides(n, scale, dtype)
    loss = bound(student, teacher)(student, teacher, {})
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.features.values())


def test_it_pairs_the_stages_of_two_models_and_learns() -> None:
    models = [torch.nn.Sequential(torch.nn.Conv2d(1, w, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(w, w, 3, 2, 1), torch.nn.Flatten()) for w in (2, 4)]
    for model, w in zip(models, (2, 4), strict=True):
        model.append(torch.nn.Linear(4 * w, 3))
    batch = (torch.randn(4, 1, 8, 8), torch.arange(4) % 3)
    scheme = Offline(models[0], models[1], [ReviewKD()], example=batch)
    scheme(batch).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in scheme.terms.parameters())


def test_the_fused_maps_are_as_wide_as_is_asked() -> None:
    widths = []
    for channels in (None, 3):
        review = ReviewKD(layers={"a": "a", "b": "b", "c": "c"}, channels=channels)
        review.bind(*sides(), cast(Task, None), None)
        widths.append({name: p.shape[0] for name, p in review.named_parameters() if name.endswith("inward.0.weight")})
    assert [set(one.values()) for one in widths] == [{8}, {3}], "the deepest map has 8"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="channels is 0"):
        ReviewKD(channels=0)
    with pytest.raises(MismatchError, match=r"\[2, 4, 2, 2\].*\[2, 4, 3, 3\]"):
        reviewkd_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 3, 3))
    tokens = Knowledge({}, {"a": torch.zeros(2, 3, 4)})
    with pytest.raises(MismatchError, match=r"'a' gives \[2, 3, 4\]"):
        ReviewKD(layers={"a": "a"}).bind(tokens, tokens, cast(Task, None), None)
