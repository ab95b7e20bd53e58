"""`attention.minilm` against loops: relations of any number of heads, attention's probabilities, and both versions of the method."""

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.models.vit import ViT
from limbeck.objectives.attention.minilm import MiniLM, minilm_attention_loss, minilm_loss
from limbeck.schemes.offline import Offline

NO_TASK = cast(Task, None)


def said(**features: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(torch.zeros(2, 3))}, features)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def relation(vectors: list[list[float]], token: int, head: int, heads: int) -> list[float]:
    """Softmax over tokens of a token's scaled products with each, in one relation head of the whole vectors [T][D]."""
    size = len(vectors[0]) // heads
    part = [vector[head * size : (head + 1) * size] for vector in vectors]
    return softmax([sum(a * b for a, b in zip(part[token], other, strict=True)) / math.sqrt(size) for other in part])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_equal_a_loop(heads: int) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 8, dtype=torch.float64)
    loss = minilm_loss(student, teacher, heads=heads)
    for row in range(2):
        mine, its = student[row].tolist(), teacher[row].tolist()
        sums = [divergence(relation(its, t, h, heads), relation(mine, t, h, heads)) for t in range(3) for h in range(heads)]
        assert loss[row].item() == pytest.approx(sum(sums) / (3 * heads), rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: minilm_loss(x, teacher, heads=heads), student, rtol=1e-6)


def test_attention_equals_a_loop_and_a_student_may_leave_a_place_out() -> None:
    student, teacher = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64).softmax(-1).unbind()
    student.requires_grad_()
    loss = minilm_attention_loss(student, teacher)
    for row in range(3):
        sums = [divergence(teacher[row, h, t].tolist(), student[row, h, t].tolist()) for h in range(2) for t in range(4)]
        assert loss[row].item() == pytest.approx(sum(sums) / 8, rel=1e-9)
    assert torch.allclose(torch.autograd.grad(loss.sum(), student)[0], (-teacher / student / 8).detach())
    causal = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], requires_grad=True)
    same = minilm_attention_loss(causal, causal)
    same.sum().backward()
    assert causal.grad is not None
    assert same.item() == pytest.approx(0, abs=1e-7)
    assert torch.isfinite(causal.grad).all()


def test_heads_are_put_together_and_split_anew() -> None:
    whole = torch.randn(2, 5, 12)
    in_heads = whole.unflatten(-1, (3, 4)).transpose(1, 2)
    teacher = torch.randn(2, 5, 24)
    assert torch.allclose(minilm_loss(in_heads, teacher, heads=6), minilm_loss(whole, teacher, heads=6), rtol=1e-5)
    same = minilm_loss(whole, in_heads, heads=2)
    assert torch.allclose(same, torch.zeros(2), atol=1e-6)


def test_a_rotation_of_a_head_changes_nothing() -> None:
    """Relations are products: the student need not learn the teacher's axes."""
    vectors, teacher = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert torch.allclose(minilm_loss(vectors @ rotation, teacher, heads=1), minilm_loss(vectors, teacher, heads=1))


def test_the_first_version_adds_attention_to_values() -> None:
    student, teacher = (said(v=torch.randn(2, 3, width), a=torch.randn(2, 2, 3, 3).softmax(-1)) for width in (4, 6))
    part = MiniLM(relations={"v": "v"}, attention={"a": "a"}, heads=2)
    part.bind(student, teacher, NO_TASK, None)
    expected = minilm_loss(student.features["v"], teacher.features["v"], heads=2) + minilm_attention_loss(student.features["a"], teacher.features["a"])
    assert torch.allclose(part(student, teacher, {}), expected)
    assert not list(part.parameters())


def test_the_second_version_between_vision_transformers_of_unlike_heads() -> None:
    student, teacher = ViT((1, 8, 8), 3, dim=8, depth=1, heads=2), ViT((1, 8, 8), 3, dim=12, depth=2, heads=3)
    batch = {"input": torch.randn(4, 1, 8, 8), "label": torch.tensor([0, 1, 2, 0])}
    named = {f"blocks.0.attention.{name}": f"blocks.1.attention.{name}" for name in ("query", "key", "value")}
    scheme = Offline(student, teacher, [MiniLM(relations=named, heads=4)], example=batch)
    loss = scheme(batch).loss
    loss.backward()
    assert loss.item() > 0
    for name in ("query", "key", "value"):
        gradient = student.get_submodule(f"blocks.0.attention.{name}").get_parameter("weight").grad
        assert gradient is not None
        assert gradient.any()


@given(
    n=st.sampled_from([1, 3]), tokens=st.integers(1, 4), widths=st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 6])), heads=st.sampled_from([1, 2]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_finite_for_every_shape_scale_and_dtype(n: int, tokens: int, widths: tuple[int, int], heads: int, scale: float, dtype: torch.dtype) -> None:
    student = (scale * torch.randn(n, tokens, widths[0])).to(dtype).requires_grad_()
    loss = minilm_loss(student, (scale * torch.randn(n, tokens, widths[1])).to(dtype), heads=heads)
    attention = (min(scale, 30) * torch.randn(2, n, heads, tokens, tokens)).softmax(-1).to(dtype)
    student_attention = attention[0].clone().requires_grad_()
    loss = loss + minilm_attention_loss(student_attention, attention[1])
    loss.sum().backward()
    assert student.grad is not None
    assert student_attention.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()
    assert torch.isfinite(student_attention.grad).all()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"widths 8 and 12 do not split into 12 heads each; heads may be 1, 2, 4$"):
        minilm_loss(torch.zeros(2, 3, 8), torch.zeros(2, 3, 12))
    with pytest.raises(MismatchError, match=r"\[2, 3, 4\].*\[2, 5, 4\].*tokens"):
        minilm_loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), heads=1)
    with pytest.raises(MismatchError, match=r"\[2, 2, 3, 3\].*\[2, 4, 3, 3\].*relations"):
        minilm_attention_loss(torch.zeros(2, 2, 3, 3), torch.zeros(2, 4, 3, 3))
    with pytest.raises(MismatchError, match=r"teacher's 'b' gives negative numbers.*softmax"):
        part = MiniLM(relations={}, attention={"a": "b"})
        part.bind(said(a=torch.full((2, 1, 2, 2), 0.5)), said(b=torch.full((2, 1, 2, 2), -0.5)), NO_TASK, None)
    with pytest.raises(RecipeError, match="nothing to match"):
        MiniLM(relations={})
    with pytest.raises(RecipeError, match="'a' of the student in both"):
        MiniLM(relations={"a": "a"}, attention={"a": "b"})
    with pytest.raises(RecipeError, match="heads is 0"):
        MiniLM(relations={"a": "a"}, heads=0)


def test_a_padded_batch_costs_what_its_tokens_cost_alone():
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    found = minilm_loss(ours, theirs, heads=2, mask=mask)
    want = torch.cat([minilm_loss(ours[:1], theirs[:1], heads=2), minilm_loss(ours[1:2, :3], theirs[1:2, :3], heads=2), torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(found, want)
    found.sum().backward()
    assert ours.grad is not None and ours.grad.isfinite().all()
    assert (ours.grad[mask == 0] == 0).all()
    scores = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64).masked_fill(mask[:, None, None, :] == 0, -1e9)
    a, b = scores.softmax(-1)
    alone = minilm_attention_loss(a[1:2, :, :3, :3], b[1:2, :, :3, :3])
    torch.testing.assert_close(minilm_attention_loss(a, b, mask=mask)[1:2], alone)
    with pytest.raises(MismatchError, match="one number a token"):
        minilm_loss(ours, theirs, heads=2, mask=mask[:, :4])
