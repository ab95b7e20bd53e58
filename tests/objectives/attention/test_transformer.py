"""`attention.transformer` against a loop, its one matrix W_h, and the uniform strategy that pairs layers."""

from typing import cast

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
from limbeck.models.vit import ViT
from limbeck.objectives.attention.transformer import Transformer, transformer_loss
from limbeck.schemes.offline import Offline

NO_TASK = cast(Task, None)


def said(**features: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(torch.zeros(2, 3))}, features)


def test_it_equals_a_loop() -> None:
    student, teacher = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64).unbind()
    student.requires_grad_()
    for row in range(3):
        total = 0.0
        for head in range(2):
            gaps = [student[row, head, t, u].item() - teacher[row, head, t, u].item() for t in range(4) for u in range(4)]
            total += sum(gap**2 for gap in gaps) / 16 / 2
        assert transformer_loss(student, teacher)[row].item() == pytest.approx(total, rel=1e-9)
    assert torch.allclose(torch.autograd.grad(transformer_loss(student, teacher).sum(), student)[0], (2 * (student - teacher) / 32).detach())
    assert torch.allclose(transformer_loss(student, teacher).mean(), F.mse_loss(student, teacher))


def test_a_place_that_both_exclude_counts_as_matched() -> None:
    student, teacher = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    student[..., 1], teacher[..., 1] = float("-inf"), float("-inf")
    student.requires_grad_()
    loss = transformer_loss(student, teacher)
    loss.sum().backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(0.5)
    assert torch.isfinite(student.grad).all()
    assert transformer_loss(torch.tensor([[float("nan")]]), torch.zeros(1, 1)).isnan()


def test_one_matrix_serves_all_hidden_states_of_the_same_widths() -> None:
    student, teacher = (
        said(a=torch.randn(2, 3, 4), b=torch.randn(2, 3, 4), c=torch.randn(2, 6)),
        said(a=torch.randn(2, 3, 6), b=torch.randn(2, 3, 6), c=torch.randn(2, 6)),
    )
    part = Transformer(hidden={"a": "a", "b": "b", "c": "c"})
    part.bind(student, teacher, NO_TASK, None)
    (weight,) = part.parameters()
    assert weight.shape == (6, 4)
    expected = sum(F.mse_loss(student.features[x] @ weight.T, teacher.features[x], reduction="none").mean((1, 2)) for x in "ab")
    expected = expected + (student.features["c"] - teacher.features["c"]).square().mean(1)
    assert torch.allclose(part(student, teacher, {}), expected, rtol=1e-5)
    with pytest.raises(MismatchError, match=r"bound to features \[3, 4\].*, not to \[3, 5\]"):
        part.bind(said(a=torch.zeros(2, 3, 5), b=student.features["b"], c=student.features["c"]), teacher, NO_TASK, None)


@pytest.mark.parametrize(("mine", "its", "chosen"), [(4, 12, [3, 6, 9, 12]), (6, 12, [2, 4, 6, 8, 10, 12]), (3, 4, [2, 3, 4]), (1, 5, [5]), (2, 2, [1, 2])])
def test_the_uniform_strategy(mine: int, its: int, chosen: list[int]) -> None:
    student, teacher = (Knowledge({}, shapes={f"layers.{k}.softmax": (2, 1, 3, 3) for k in range(depth)} | {"layers.0": (2, 3, 4)}) for depth in (mine, its))
    part = Transformer(attention={"layers.*.softmax:in": "layers.*.softmax:in"})
    assert part.undecided
    part.choose(student, teacher)
    assert not part.undecided
    assert part.needs.student.features == {f"layers.{k}.softmax:in" for k in range(mine)}
    assert part.needs.teacher is not None
    assert part.needs.teacher.features == {f"layers.{k - 1}.softmax:in" for k in chosen}
    assert part.said[0] == f"Transformer pairs the student's layers.0.softmax:in with the teacher's layers.{chosen[0] - 1}.softmax:in"


def test_two_vision_transformers_of_unlike_depth_and_width() -> None:
    student, teacher = ViT((1, 8, 8), 3, dim=8, depth=2, heads=2), ViT((1, 8, 8), 3, dim=12, depth=4, heads=2)
    batch = {"input": torch.randn(4, 1, 8, 8), "label": torch.tensor([0, 1, 2, 0])}
    part = Transformer(hidden={"blocks.*": "blocks.*"}, attention={"blocks.*.attention.softmax:in": "blocks.*.attention.softmax:in"})
    scheme = Offline(student, teacher, [part], example=batch)
    assert len(part.said) == 4
    loss = scheme(batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert student.get_submodule("blocks.1.attention.query").get_parameter("weight").grad is not None
    assert not any(p.grad is not None for p in teacher.parameters())


@given(
    n=st.sampled_from([1, 3]), heads=st.integers(1, 2), tokens=st.integers(1, 4), scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_finite_for_every_shape_scale_and_dtype(n: int, heads: int, tokens: int, scale: float, dtype: torch.dtype) -> None:
    student, teacher = (scale * torch.randn(2, n, heads, tokens, tokens)).to(dtype).unbind()
    student.requires_grad_()
    loss = transformer_loss(student, teacher)
    check_sound(loss, student)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing to match"):
        Transformer()
    with pytest.raises(MismatchError, match=r"'a' gives \[2, 2, 3, 3\].*'b' \[2, 4, 3, 3\].*minilm"):
        Transformer(attention={"a": "b"}).bind(said(a=torch.zeros(2, 2, 3, 3)), said(b=torch.zeros(2, 4, 3, 3)), NO_TASK, None)
    with pytest.raises(MismatchError, match=r"'a' gives \[2, 3, 4\].*'b' \[2, 5, 4\].*same T"):
        Transformer(hidden={"a": "b"}).bind(said(a=torch.zeros(2, 3, 4)), said(b=torch.zeros(2, 5, 4)), NO_TASK, None)
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5\]"):
        transformer_loss(torch.zeros(2, 4), torch.zeros(2, 5))
    few, many = (Knowledge({}, shapes={f"blocks.{k}": (2, 3, 4) for k in range(depth)}) for depth in (2, 3))
    with pytest.raises(MismatchError, match=r"3 layers of the student.*only 2"):
        Transformer(hidden={"blocks.*": "blocks.*"}).choose(many, few)
    with pytest.raises(MismatchError, match=r"the student has no layers 'block\.\*'.*blocks\.0"):
        Transformer(hidden={"block.*": "blocks.*"}).choose(few, many)
    with pytest.raises(RecipeError, match=r"one \* on each side"):
        Transformer(hidden={"blocks.*": "blocks.1"}).choose(few, many)


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 2, 5, 5)])
def test_a_padded_batch_costs_what_its_tokens_cost_alone(shape):
    torch.manual_seed(0)
    ours, theirs = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    cut = (slice(1, 2), slice(None), slice(3), slice(3)) if len(shape) == 4 else (slice(1, 2), slice(3))
    want = torch.cat([transformer_loss(ours[:1], theirs[:1]), transformer_loss(ours[cut], theirs[cut]), torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(transformer_loss(ours, theirs, mask=mask), want)
    with pytest.raises(MismatchError, match="one number a token"):
        transformer_loss(ours, theirs, mask=mask[:, :4])
