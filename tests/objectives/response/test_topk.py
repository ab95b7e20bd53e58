"""A teacher of whom the likeliest classes alone are known: against a loop in float64, whole logits, and every objective that cannot do with it."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import LimbeckError, MismatchError
from limbeck.core.knowledge import Dense, Knowledge, TopK
from limbeck.core.lookup import build, names
from limbeck.core.task import Task
from limbeck.objectives.response.kd import KD, kd_loss
from limbeck.objectives.response.soft_cross_entropy import SoftCrossEntropy, soft_cross_entropy_loss

INF = float("inf")


def kept(logits: Tensor, k: int, temperature: float) -> TopK:
    log_p = (logits / temperature).log_softmax(-1)
    values, indices = log_p.topk(k)
    tail = log_p.scatter(-1, indices, -INF).logsumexp(-1)
    return TopK(values, indices, tail, temperature, logits.shape[-1])


def says(answer: Tensor | TopK) -> Knowledge:
    return Knowledge({"main": answer if isinstance(answer, TopK) else Dense(answer)})


def softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    odds = [math.exp((logit - top) / temperature) for logit in logits]
    return [odd / sum(odds) for odd in odds]


def naive(student: list[float], teacher: list[float], k: int, temperature: float) -> tuple[float, float]:
    """T^2 KL and T^2 cross-entropy over the teacher's k likeliest classes and one for all others."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    best = sorted(range(len(p)), key=lambda c: -p[c])[:k]
    rest = [c for c in range(len(p)) if c not in best]
    pairs = [(p[c], q[c]) for c in best] + [(sum(p[c] for c in rest), sum(q[c] for c in rest))]
    divergence = sum(a * math.log(a / b) for a, b in pairs if a > 0)
    return temperature**2 * divergence, -(temperature**2) * sum(a * math.log(b) for a, b in pairs if a > 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 12), st.data(), st.floats(0.1, 10), st.floats(0.5, 20), st.integers(0, 10**6))
def test_both_equal_a_loop_in_float64(n: int, classes: int, data: Any, scale: float, temperature: float, seed: int) -> None:
    k = data.draw(st.integers(1, classes - 1))
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, n, classes, generator=draw, dtype=torch.float64)).unbind()
    sides = says(student), says(kept(teacher, k, temperature)), cast(Any, {})
    divergence, cross = KD(temperature=temperature)(*sides), SoftCrossEntropy(temperature=temperature)(*sides)
    for row in range(n):
        expected = naive(student[row].tolist(), teacher[row].tolist(), k, temperature)
        assert divergence[row].item() == pytest.approx(expected[0], rel=1e-6, abs=1e-10)
        assert cross[row].item() == pytest.approx(expected[1], rel=1e-6, abs=1e-10)
    assert (divergence <= kd_loss(student, teacher, temperature=temperature) + 1e-9).all()  # a coarser choice tells less


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_all_classes_but_one_are_whole_logits_gradient_and_all(temperature: float) -> None:
    student, teacher = torch.randn(2, 6, 9, dtype=torch.float64).mul(3).unbind()
    student.requires_grad_()
    for objective, whole in ((KD, kd_loss), (SoftCrossEntropy, soft_cross_entropy_loss)):
        found = objective(temperature=temperature)(says(student), says(kept(teacher, 8, temperature)), {})
        expected = whole(student, teacher, temperature=temperature)
        assert torch.allclose(found, expected, rtol=1e-10)
        gradients = [torch.autograd.grad(one.sum(), student)[0] for one in (found, expected)]
        assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12)


def test_a_student_equal_to_its_teacher_pays_nothing_and_learns_nothing() -> None:
    student = torch.randn(8, 20).mul(5).requires_grad_()
    loss = KD(temperature=4.0)(says(student), says(kept(student.detach(), 3, 4.0)), {})
    loss.sum().backward()
    assert student.grad is not None
    assert loss.abs().max() < 1e-5 and student.grad.abs().max() < 1e-5


def test_a_tail_of_no_mass_compares_the_kept_classes_with_the_students_whole_softmax() -> None:
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    sparse = kept(teacher, 2, 1.0)
    alone = TopK(sparse.log_probs.log_softmax(-1), sparse.indices, torch.full((4,), -INF), 1.0, 6)
    p, log_q = alone.log_probs.exp(), student.log_softmax(-1).gather(-1, alone.indices)
    expected = (p * (alone.log_probs - log_q)).sum(-1)
    assert torch.allclose(KD(temperature=1.0)(says(student), says(alone), {}), expected, atol=1e-6)


def test_what_both_exclude_asks_nothing_and_peaks_stay_finite() -> None:
    student = torch.tensor([[1.0, 2.0, -INF], [1e4, -1e4, 0.0]], requires_grad=True)
    teacher = kept(torch.tensor([[0.5, 0.1, -INF], [-1e4, 1e4, 0.0]]), 2, 1.0)
    loss = KD(temperature=1.0)(says(student), says(teacher), {})
    loss.sum().backward()
    assert student.grad is not None
    assert loss.isfinite().all() and student.grad.isfinite().all()
    assert student.grad[0, 2] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 4, 6).to(dtype).unbind()
    loss = KD(temperature=2.0)(says(student), says(kept(teacher.float(), 3, 2.0)), {})
    assert loss.dtype == torch.float32 and loss.isfinite().all()


def test_another_temperature_is_refused_before_step_one_and_at_it() -> None:
    sides = says(torch.randn(2, 6)), says(kept(torch.randn(2, 6), 3, 4.0))
    for options, told in (({"temperature": 2.0}, "temperature is 2"), ({"temperature": {"kind": "linear", "start": 4, "end": 4}}, "follows a schedule")):
        for kind in ("response.kd", "response.soft_cross_entropy"):
            with pytest.raises(MismatchError, match=rf"{told}.*the 3 likeliest of 6 classes at temperature 4.*take temperature: 4, or record at another"):
                build("objectives", kind, options).bind(*sides, cast(Task, None), None)
    with pytest.raises(MismatchError, match="temperature is 2"):
        KD(temperature=2.0)(*sides, {})


def test_another_batch_or_other_classes_are_refused() -> None:
    teacher = says(kept(torch.randn(2, 6), 3, 4.0))
    with pytest.raises(MismatchError, match=r"\[3, 6\] and the teacher's \[2, 6\]"):
        KD()(says(torch.randn(3, 6)), teacher, {})
    with pytest.raises(MismatchError, match="5 classes, the teacher 6"):
        KD().bind(says(torch.randn(2, 5)), teacher, cast(Task, None), None)


ABLE = {"response.kd", "response.soft_cross_entropy"}
OTHERS = [kind for kind in names("objectives") if kind.startswith("response.") and kind not in ABLE]


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_response_objective_refuses_it_in_one_line(kind: str) -> None:
    objective = build("objectives", kind, {})
    if objective.needs.teacher is None:
        pytest.skip("it asks no teacher")
    with pytest.raises(LimbeckError, match=r"likeliest of 6 classes|answers are softmax") as told:
        objective.bind(says(torch.randn(2, 6)), says(kept(torch.randn(2, 6), 3, 4.0)), cast(Task, None), None)
    assert "\n" not in str(told.value)


def test_it_compiles_whole() -> None:
    sides = says(torch.randn(4, 6)), says(kept(torch.randn(4, 6), 3, 4.0)), cast(Any, {})
    torch.compiler.reset()
    compiled = torch.compile(KD(temperature=4.0), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(*sides), KD(temperature=4.0)(*sides), rtol=1e-5)
