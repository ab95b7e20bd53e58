"""`feature.srrl` against a loop, and a teacher's classifier that is called and never taught."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.schedule import Clock, Linear
from limbeck.core.task import Task
from limbeck.models.cnn import CNN
from limbeck.objectives.feature.srrl import SRRL, srrl_loss
from limbeck.schemes.offline import Offline

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def naive(student: Tensor, teacher: Tensor, ours: Tensor, theirs: Tensor, form: str, feature: float, regression: float) -> Tensor:
    rows = []
    for s, t, z, v in zip(student, teacher, ours, theirs, strict=True):
        first = sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        if form == "l2":
            second = sum((a - b) ** 2 for a, b in zip(z, v, strict=True)) / len(z)
        else:
            q, p = [torch.exp(a) for a in z], [torch.exp(b) for b in v]
            second = -sum(b / sum(p) * torch.log(a / sum(q)) for a, b in zip(q, p, strict=True))
        rows.append(feature * first + regression * second)
    return torch.stack(rows)


@pytest.mark.parametrize("form", ["l2", "cross_entropy"])
def test_both_forms_equal_a_loop_value_and_gradient(form: Any) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    ours, theirs = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    learns = [student.requires_grad_(), ours.requires_grad_()]
    loss = srrl_loss(student, teacher, ours, theirs, form=form, feature=0.5, regression=2.0)
    slow = naive(student, teacher, ours, theirs, form, 0.5, 2.0)
    assert torch.allclose(loss, slow, rtol=1e-6)
    for fast, plain in zip(torch.autograd.grad(loss.sum(), learns), torch.autograd.grad(slow.sum(), learns), strict=True):
        assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-12)


def test_the_squared_form_is_the_feature_gap_seen_by_the_classifier() -> None:
    head, student, teacher = nn.Linear(4, 5, dtype=torch.float64), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    seen = ((student - teacher) @ head.weight.T).square().mean(1)
    assert torch.allclose(srrl_loss(student, teacher, head(student), head(teacher), feature=0.0), seen, rtol=1e-6)


def sides(n: int, *, maps: bool = False, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Knowledge, Knowledge]:
    places = (3, 2) if maps else ()
    ours, theirs = (scale * torch.randn(n, 4, *places)).to(dtype).requires_grad_(), (scale * torch.randn(n, 6, *places)).to(dtype)
    said = {"main": Dense(torch.zeros(n, 5))}
    return Knowledge(said, {"s": ours}), Knowledge(said, {"t": theirs}, modules={"fc": nn.Linear(6, 5, dtype=dtype)})


def bound(student: Knowledge, teacher: Knowledge, **options: Any) -> SRRL:
    srrl = SRRL(layers={"s": "t"}, head="fc", **options)
    srrl.bind(student, teacher, cast(Task, None), None)
    return srrl


@pytest.mark.parametrize("maps", [False, True])
def test_the_whole_objective_equals_its_steps_written_out(maps: bool) -> None:
    student, teacher = sides(6, maps=maps)
    srrl = bound(student, teacher, feature=Linear(start=0, end=2, epochs=2), regression=0.5)
    srrl.clock = Clock(1, 4)
    ours, theirs = (x if maps else x[..., None, None] for x in (student.features["s"], teacher.features["t"]))
    linear = torch.einsum("oi,nihw->nohw", srrl.connector[0].get_parameter("weight")[..., 0, 0], ours)
    normal = (linear - linear.mean((0, 2, 3), keepdim=True)) / (linear.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    connected, target = normal.relu().mean((2, 3)), theirs.mean((2, 3))
    head = teacher.modules["fc"]
    expected = (connected - target).square().mean() + 0.5 * (head(connected) - head(target)).square().mean()
    assert torch.allclose(srrl(student, teacher, {}), expected, rtol=1e-4)


def test_the_teachers_classifier_is_called_but_neither_taught_nor_held() -> None:
    student, teacher = CNN((1, 8, 8), 3, width=2), CNN((1, 8, 8), 3, width=4)
    batch = (torch.randn(6, 1, 8, 8), torch.arange(6) % 3)
    scheme = Offline(student, teacher, [SRRL()], example=batch)
    (term,) = scheme.terms
    scheme(batch).loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert {id(p) for p in term.parameters()}.isdisjoint(id(p) for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in term.parameters())
    srrl = cast(SRRL, term.objective)
    assert list(srrl.pairs) == [("head:in", "head:in")]
    assert srrl.classifier == "head"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.booleans(), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES, st.sampled_from(["l2", "cross_entropy"]))
def test_every_batch_scale_and_precision_is_finite(n: int, maps: bool, scale: float, dtype: torch.dtype, form: Any) -> None:
    student, teacher = sides(n, maps=maps, scale=scale, dtype=dtype)
    check_sound(bound(student, teacher, form=form)(student, teacher, {}), student.features["s"])


def test_what_cannot_be_is_refused() -> None:
    student, teacher = sides(4)
    with pytest.raises(RecipeError, match="did you mean 'l2'"):
        SRRL(form=cast(Any, "L2"))
    with pytest.raises(RecipeError, match=r"classifier.*'pool'.*head: head"):
        SRRL(layers={"pool": "pool"})
    with pytest.raises(RecipeError, match="not 2: name one pair"):
        SRRL(layers={"a": "a", "b": "b"}, head="fc")
    with pytest.raises(MismatchError, match=r"'fc'.*hand over.*frozen"):
        bound(student, Knowledge(teacher.outputs, teacher.features))
    with pytest.raises(MismatchError, match=r"'fc' does not read its 't', \[4, 6\]"):
        bound(student, Knowledge(teacher.outputs, teacher.features, modules={"fc": nn.Linear(7, 5)}))
    tokens = Knowledge({}, {"s": torch.zeros(2, 3, 4), "t": torch.zeros(2, 3, 4)}, modules=teacher.modules)
    with pytest.raises(MismatchError, match=r"'s' gives \[2, 3, 4\]"):
        bound(tokens, tokens)
    with pytest.raises(MismatchError, match=r"logits.*\[2, 3\].*\[2, 4\]"):
        srrl_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(2, 4))
