"""`response.divergence`: its leaf against a loop in float64, its options one by one, and what it refuses."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, TopK
from limbeck.core.lookup import build
from limbeck.core.schedule import Clock, Cosine, Decay, Linear
from limbeck.core.task import Facts, Task
from limbeck.objectives.response.divergence import DivergenceKD, divergence_loss
from limbeck.objectives.response.kd import KD, kd_loss

INF = float("inf")
NAMES = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"]
names = pytest.mark.parametrize("name", NAMES)


def says(answer: Any, mask: Tensor | None = None) -> Knowledge:
    return Knowledge({"main": Dense(answer) if isinstance(answer, Tensor) else answer}, mask=mask)


def softmax(logits: list[float], temperature: float) -> list[float]:
    odds = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    return [odd / sum(odds) for odd in odds]


def naive(name: str, student: list[float], teacher: list[float], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    mixed = {"jsd": 0.5, "skew_kl": 0.1}.get(name, 0.9)  # the teacher's share
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = mixed * a + (1 - mixed) * b
        total += {
            "forward_kl": lambda a=a, b=b: a * math.log(a / b),
            "reverse_kl": lambda a=a, b=b: b * math.log(b / a),
            "jsd": lambda a=a, b=b, m=m: (a * math.log(a / m) + b * math.log(b / m)) / 2,
            "skew_kl": lambda a=a, m=m: a * math.log(a / m),
            "skew_reverse_kl": lambda b=b, m=m: b * math.log(b / m),
            "total_variation": lambda a=a, b=b: abs(a - b) / 2,
        }[name]()
    return temperature**2 * total


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 4), st.integers(1, 9), st.floats(0.1, 8), st.floats(0.5, 9), st.integers(0, 10**6))
def test_the_leaf_is_a_loop_in_float64(name: Any, n: int, classes: int, scale: float, temperature: float, seed: int) -> None:
    student, teacher = (scale * torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).unbind()
    found = divergence_loss(student, teacher, divergence=name, temperature=temperature)
    assert found.dtype == torch.float64
    for row in range(n):
        assert found[row].item() == pytest.approx(naive(name, student[row].tolist(), teacher[row].tolist(), temperature), rel=1e-8, abs=1e-12)
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence_loss(z, teacher, divergence=name, temperature=temperature), leaf, atol=1e-5)


def test_the_forward_kl_is_response_kd_of_any_form() -> None:
    student, teacher = torch.randn(2, 6, 9).unbind()
    log_p = (teacher / 3).log_softmax(-1)
    values, indices = log_p.topk(4)
    few = TopK(values, indices, log_p.scatter(-1, indices, -INF).logsumexp(-1), 3.0, 9)
    for theirs in (teacher, few):
        for ours in (student, Hidden(student, torch.eye(9))):
            torch.testing.assert_close(DivergenceKD(temperature=3.0)(says(ours), says(theirs), {}), KD(temperature=3.0)(says(student), says(theirs), {}))


@names
def test_a_head_is_its_logits(name: Any) -> None:
    weight, theirs = torch.randn(30, 4).requires_grad_(), torch.randn(2, 5, 30)
    states = torch.randn(2, 5, 4).requires_grad_()
    hidden = Hidden(states, weight, softcap=5.0)
    batch = {"label": torch.arange(10).reshape(2, 5)}
    found = [DivergenceKD(divergence=name, hard=0.3, way=cast(Any, way))(says(answer), says(theirs), batch) for answer, way in (
        (hidden, "tokens"), (hidden, "vocabulary"), (Dense(hidden.logits), None),
    )]  # fmt: skip
    grads = [torch.autograd.grad(one.sum(), (states, weight)) for one in found]
    for one, grad in zip(found[1:], grads[1:], strict=True):
        torch.testing.assert_close(one, found[0])
        torch.testing.assert_close(grad, grads[0], rtol=1e-4, atol=1e-6)


def test_the_hard_share_is_the_cross_entropy_at_one() -> None:
    student, teacher, labels = torch.randn(6, 9), torch.randn(6, 9), torch.arange(6)
    objective = DivergenceKD(divergence="jsd", temperature=4.0, hard=0.25)
    assert objective.needs.labels and not DivergenceKD().needs.labels
    found = objective(says(student), says(teacher), {"label": labels})
    right = 0.75 * divergence_loss(student, teacher, divergence="jsd", temperature=4.0) + 0.25 * F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(found, right)


def test_taids_target_moves_from_the_student_to_the_teacher() -> None:
    student, teacher = torch.randn(2, 6, 9).unbind()
    taid = build("objectives", "response.divergence", {"toward": {"kind": "linear", "start": 0.0, "end": 1.0}})
    for epoch, share in ((0, 0.0), (2.5, 0.25), (10, 1.0)):
        taid.clock = Clock(epoch, 10)
        target = (1 - share) * student + share * teacher
        torch.testing.assert_close(taid(says(student), says(teacher), {}), kd_loss(student, target, temperature=1.0), rtol=1e-4, atol=1e-6)
        leaf = student.clone().requires_grad_()  # the student's part of the target is held fixed: q - p
        (gradient,) = torch.autograd.grad(taid(says(leaf), says(teacher), {}).sum(), leaf)
        torch.testing.assert_close(gradient, student.softmax(-1) - target.softmax(-1), rtol=1e-4, atol=1e-6)


def test_renormalized_classes_leave_the_others_nothing() -> None:
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    log_p = teacher.log_softmax(-1)
    values, indices = log_p.topk(3)
    few = TopK(values, indices, log_p.scatter(-1, indices, -INF).logsumexp(-1), 1.0, 9)
    only = torch.full_like(teacher, -INF).scatter(-1, indices, teacher.gather(-1, indices))
    for name in ("forward_kl", "jsd", "skew_kl"):
        found = DivergenceKD(divergence=name, renormalize=True)(says(student), says(few), {})
        torch.testing.assert_close(found, divergence_loss(student, only, divergence=name))


def bind(objective: DivergenceKD, student: Any, teacher: Any, facts: Facts | None = None) -> None:
    objective.bind(says(student), None if teacher is None else says(teacher), cast(Task, None), facts)


def test_what_was_chosen_is_said() -> None:
    states, head = torch.zeros(300, 2), torch.zeros(50257, 2)
    plain, streamed = DivergenceKD(), DivergenceKD(budget=30_000_000)
    bind(plain, torch.zeros(2, 5), torch.zeros(2, 5))
    assert plain.said == ()
    bind(streamed, Hidden(states, head), Hidden(states, head))
    (line,) = streamed.said
    assert line.startswith("DivergenceKD: 300 tokens by a vocabulary of 50,257, streamed: ") and line.endswith("MB of buffers")
    bind(streamed, Hidden(states, head), Hidden(states, torch.zeros(50304, 2)))  # a padded vocabulary is none of another kind
    assert "of 50,257 and 50,304 entries the first 50,257 count" in streamed.said[0]


def test_a_teacher_that_leaves_the_others_nothing_is_for_the_forward_kl_alone() -> None:
    student = torch.randn(4, 9)
    counts = torch.tensor([[3.0, 1.0, 0.0]]).expand(4, 3)
    sampled = TopK((counts / 4).log(), torch.tensor([[2, 7, 0]]).expand(4, 3), torch.full((4,), -INF), 1.0, 9)
    bind(DivergenceKD(), student, sampled)
    bind(DivergenceKD(divergence="jsd", renormalize=True), student, sampled)
    for name in NAMES[1:]:
        with pytest.raises(MismatchError, match=rf"only the forward KL's gradient is unbiased then, and {name} was asked for"):
            bind(DivergenceKD(divergence=cast(Any, name)), student, sampled)
    everything = TopK(torch.randn(4, 3).log_softmax(-1), torch.arange(3).expand(4, 3), torch.full((4,), -INF), 1.0, 3)
    bind(DivergenceKD(divergence="reverse_kl"), torch.randn(4, 3), everything)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"divergence": "forward"}, r"no divergence 'forward'.*did you mean 'forward_kl'"),
        ({"divergence": {"kind": "jsd", "beta": 1.0}}, r"divergence jsd: beta: .*less than 1"),
        ({"divergence": {"kind": "jsd", "alpha": 0.5}}, r"divergence jsd: alpha"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"hard": 1.0}, r"hard is 1; it must be a share.*supervised"),
        ({"hard": -0.1}, "hard is -0.1"),
        ({"toward": 1.5}, "toward is 1.5"),
        ({"toward": Linear(start=0, end=2)}, "toward is 2"),
        ({"toward": Cosine(start=3, end=0)}, "toward is 3"),
        ({"toward": Decay(start=1.2)}, "toward is 1.2"),
        ({"toward": -0.5}, "toward is -0.5"),
        ({"budget": 0}, r"budget is 0; it must be the bytes"),
        ({"way": "token"}, r"no way 'token'.*did you mean 'tokens'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused_in_a_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as error:
        DivergenceKD(**options)
    assert "\n" not in str(error.value)


def test_sides_that_do_not_fit_are_refused_before_step_one() -> None:
    few = TopK(torch.full((2, 3), math.log(0.2)), torch.arange(3).expand(2, 3), torch.full((2,), math.log(0.4)), 2.0, 9)
    facts = Facts((1,), 9, tuple("abcdefghi"), 2, labelled=False)
    cases: list[tuple[str, dict[str, Any], Any, Any]] = [
        ("needs a teacher", {}, torch.zeros(2, 9), None),
        ("student has 8 classes, the teacher 9", {}, torch.zeros(2, 8), torch.zeros(2, 9)),
        (r"identity", {}, Dense(torch.zeros(2, 9), "identity"), Dense(torch.zeros(2, 9), "identity")),
        (r"take temperature: 2", {}, torch.zeros(2, 9), few),
        (r"leave out toward", {"temperature": 2.0, "toward": 0.5}, torch.zeros(2, 9), few),
        (r"leave out renormalize", {"renormalize": True}, torch.zeros(2, 9), torch.zeros(2, 9)),
        (r"leave out hard, or give labelled data", {"hard": 0.1}, torch.zeros(2, 9), torch.zeros(2, 9)),
        (r"budget is 10: allow more", {"budget": 10}, Hidden(torch.zeros(2, 3), torch.zeros(999, 3)), torch.zeros(2, 999)),
    ]
    for told, options, student, teacher in cases:
        with pytest.raises(MismatchError, match=told) as error:
            bind(DivergenceKD(**options), student, teacher, facts)
        assert "\n" not in str(error.value)
    with pytest.raises(MismatchError, match=r"\[3, 9\].*\[2, 9\]"):
        divergence_loss(torch.zeros(3, 9), torch.zeros(2, 9))
    with pytest.raises(RecipeError, match="no divergence 'kl'"):
        divergence_loss(torch.zeros(3, 9), torch.zeros(3, 9), divergence=cast(Any, "kl"))
