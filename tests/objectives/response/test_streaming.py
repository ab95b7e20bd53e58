"""The streamed operator against whole logits in float64, value and every gradient: each way, each kind of teacher, each divergence, and at every edge."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, TopK
from limbeck.objectives.response import _streaming_passes as passes
from limbeck.objectives.response import _streaming_plan
from limbeck.objectives.response._divergences import JSD, Divergence, ForwardKL, ReverseKL, SkewKL, SkewReverseKL, TotalVariation
from limbeck.objectives.response._streaming import Way, streamed

INF = float("inf")
EVERY: list[Divergence] = [ForwardKL(), ReverseKL(), JSD(beta=0.3), SkewKL(), SkewReverseKL(), TotalVariation()]
every = pytest.mark.parametrize("divergence", EVERY, ids=lambda one: one.kind)
ways = pytest.mark.parametrize("way", ["dense", "tokens", "vocabulary"])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few rows, entries and logits, so that small numbers make several."""
    monkeypatch.setattr(_streaming_plan, "_TILE", {"cpu": 30})
    monkeypatch.setattr(_streaming_plan, "_ROWS", {"cpu": 3})
    monkeypatch.setattr(_streaming_plan, "_CHUNK", 0)
    monkeypatch.setattr(_streaming_plan, "_WIDTH", 4)
    monkeypatch.setattr("limbeck.objectives.response._streaming_products._BLOCK", 5)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL by rows; classes of probability zero cost nothing and have no gradient."""
    some = p > 0
    return torch.where(some, p * (torch.where(some, p, 1.0).log() - torch.where(some, q, 1.0).log()), 0.0).sum(-1)


def value(divergence: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """The divergence of probabilities, as its paper writes it."""
    if isinstance(divergence, ForwardKL):
        return kl(p, q)
    if isinstance(divergence, ReverseKL):
        return kl(q, p)
    if isinstance(divergence, JSD):
        m = divergence.beta * p + (1 - divergence.beta) * q
        return divergence.beta * kl(p, m) + (1 - divergence.beta) * kl(q, m)
    if isinstance(divergence, SkewKL):
        return kl(p, divergence.alpha * p + (1 - divergence.alpha) * q)
    if isinstance(divergence, SkewReverseKL):
        return kl(q, divergence.alpha * q + (1 - divergence.alpha) * p)
    return (p - q).abs().sum(-1) / 2


def whole(answer: Hidden | Dense) -> Tensor:
    """Logits in float64, every step of the way."""
    if isinstance(answer, Dense):
        return answer.logits.double()
    return replace(answer, states=answer.states.double(), weight=answer.weight.double(), bias=None if answer.bias is None else answer.bias.double()).logits


def coarse(probabilities: Tensor, few: TopK) -> Tensor:
    rest = probabilities.scatter(-1, few.indices, 0.0).sum(-1, keepdim=True)
    return torch.cat([probabilities.gather(-1, few.indices), rest], -1)


def expected(student: Hidden | Dense, teacher: Hidden | Dense | TopK | None, labels: Tensor | None = None, **how: Any) -> Tensor:
    """The loss by whole logits, for autograd."""
    t, hard, toward = how.get("temperature", 1.0), how.get("hard", 0.0), how.get("toward")
    z = whole(student)
    loss = torch.zeros(len(z), dtype=torch.float64)
    if isinstance(teacher, TopK):
        p = torch.cat([teacher.log_probs, teacher.log_tail[:, None]], -1).double().exp()
        loss = value(how["divergence"], p, coarse((z / t).softmax(-1), teacher))
    elif teacher is not None:
        y = whole(teacher)
        shared = min(z.shape[1], y.shape[1])
        z, y = z[:, :shared], y[:, :shared]
        y = y if toward is None else (1 - toward) * z.detach() + toward * y
        loss = value(how["divergence"], (y / t).softmax(-1), (z / t).softmax(-1))
    loss = (1 - hard) * t**2 * loss
    if hard:
        assert labels is not None
        loss = loss - hard * z.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    return loss if how.get("weights") is None else loss * how["weights"]


def grads(loss: Tensor, *of: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss.sum(), [one for one in of if one is not None]))


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def head(n: int, d: int, v: int, seed: int = 0, *, bias: bool = True, dtype: torch.dtype = torch.float64, **how: Any) -> Hidden:
    """A student's answer, of leaves; spread enough for probabilities of all sizes."""
    states, weight, of = drawn(n, d, seed=seed, dtype=dtype), drawn(v, d, seed=seed + 1, dtype=dtype), drawn(v, seed=seed + 2, dtype=dtype)
    return Hidden(states.requires_grad_(), weight.requires_grad_(), of.requires_grad_() if bias else None, **how)


def few_of(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    log_p = (logits / temperature).log_softmax(-1)
    values, indices = log_p.topk(k)
    return TopK(values, indices, log_p.scatter(-1, indices, -INF).logsumexp(-1), temperature, logits.shape[-1])


def parts_of(answer: Hidden | Dense) -> list[Tensor | None]:
    return [answer.logits] if isinstance(answer, Dense) else [answer.states, answer.weight, answer.bias]


def agree(student: Hidden | Dense, teacher: Any, labels: Tensor | None, way: Way | None, rtol: float = 1e-8, **how: Any) -> None:
    found, right = streamed(student, teacher, labels, way=way, **how), expected(student, teacher, labels, **how)
    torch.testing.assert_close(found.double(), right, rtol=rtol, atol=1e-12)
    for one, other in zip(grads(found, *parts_of(student)), grads(right, *parts_of(student)), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-11)


HOWS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.5},
    {"hard": 0.3},
    {"temperature": 0.7, "hard": 0.4, "toward": 0.35},
    {"toward": 0.0, "hard": 0.5},
    {"toward": 1.0, "temperature": 2.0},
]


@every
@ways
def test_it_is_whole_logits_in_float64_of_every_teacher(divergence: Divergence, way: Way) -> None:
    n, v = 7, 11
    labels, weights = torch.arange(n) * 3 % v, drawn(n).abs()
    teacher = head(n, 3, v, seed=9, scale=1.3)
    for how, student in itertools.product(HOWS, (head(n, 5, v, scale=0.8, softcap=3.0), Dense(drawn(n, v).mul(2).requires_grad_()))):
        agree(student, teacher, labels, way, divergence=divergence, weights=weights, **how)
        agree(student, Dense(teacher.logits.detach()), labels, way, divergence=divergence, **how)
        if "toward" not in how:
            few = few_of(teacher.logits.detach(), 4, how.get("temperature", 1.0))
            agree(student, few, labels, way, divergence=divergence, weights=weights, **how)


@ways
def test_the_cross_entropy_alone(way: Way) -> None:
    labels = torch.tensor([0, 10, 5, 5, 1])
    agree(head(5, 4, 11, softcap=2.0), None, labels, way, hard=1.0, divergence=ForwardKL())
    agree(head(5, 4, 11), head(5, 2, 11, 3), labels, way, hard=1.0, temperature=3.0, divergence=JSD())  # the teacher is asked nothing
    student = head(5, 4, 11)
    torch.testing.assert_close(
        streamed(student, None, labels, hard=1.0, way=way), nn.functional.cross_entropy(student.logits, labels, reduction="none"), rtol=1e-10, atol=0
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 13), st.integers(1, 13), st.integers(1, 6), st.sampled_from(EVERY), st.data())
def test_any_shape_and_unequal_vocabularies(n: int, v: int, other: int, d: int, divergence: Divergence, data: Any) -> None:
    way = data.draw(st.sampled_from(["dense", "tokens", "vocabulary", None]))
    bias, hard = data.draw(st.booleans()), data.draw(st.sampled_from([0.0, 0.4]))
    teacher: Any = head(n, 3, other, seed=5, bias=not bias)
    if v == other > 1 and data.draw(st.booleans()):
        teacher = few_of(teacher.logits.detach(), data.draw(st.integers(1, v - 1)))
    labels = torch.arange(n) % min(v, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streaming_plan, "_TILE", {"cpu": data.draw(st.sampled_from([1, 7, 1000]))})
        patch.setattr(_streaming_plan, "_ROWS", {"cpu": data.draw(st.integers(1, 10))})
        patch.setattr(_streaming_plan, "_WIDTH", data.draw(st.integers(1, 14)))
        agree(head(n, d, v, bias=bias), teacher, labels, way, rtol=1e-7, divergence=divergence, hard=hard)


@every
@ways
def test_entries_that_one_side_lacks_are_impossible_on_both(divergence: Divergence, way: Way) -> None:
    student, teacher = head(4, 3, 9), head(4, 2, 6, seed=4)
    padded = replace(teacher, weight=torch.cat([teacher.weight, torch.zeros(3, 2)]).detach(), bias=torch.cat([drawn(6, seed=6), torch.full((3,), -INF)]))
    short = replace(teacher, weight=teacher.weight.detach(), bias=drawn(6, seed=6))
    alone = replace(student, bias=None)
    first = streamed(alone, short, divergence=divergence, way=way)
    to_states, to_weight = grads(first, student.states, student.weight)
    assert (to_weight[6:] == 0).all() and to_weight[:6].abs().sum() > 0
    cut = replace(student, weight=student.weight[:6], bias=None)
    torch.testing.assert_close(grads(streamed(cut, short, divergence=divergence, way=way), student.states)[0], to_states)
    if not isinstance(divergence, (ReverseKL, ForwardKL)):
        return
    mirrored = replace(student, bias=torch.cat([torch.zeros(6), torch.full((3,), -INF)]).double())  # the same said by minus infinity
    same = streamed(mirrored, padded, divergence=divergence, way=way)
    torch.testing.assert_close(same, first)
    torch.testing.assert_close(grads(same, student.states, student.weight), [to_states, to_weight])


@every
@ways
def test_impossible_classes_on_one_side(divergence: Divergence, way: Way) -> None:
    student, teacher = head(4, 3, 9), head(4, 2, 9, seed=4)
    for side in (student, teacher):
        assert side.bias is not None
        side.bias.data[[2, 8]] = -INF
    agree(student, teacher, None, way, divergence=divergence)
    assert teacher.bias is not None and student.bias is not None
    teacher.bias.data[3:7] = -INF  # a whole part of the vocabulary
    found = streamed(student, teacher, divergence=divergence, way=way)
    if isinstance(divergence, ReverseKL):
        assert (found == INF).all()
    else:
        agree(student, teacher, None, way, divergence=divergence)
    teacher.bias.data[3:7] = 0.5
    student.bias.data[4] = -INF
    found = streamed(student, teacher, divergence=divergence, way=way)
    if isinstance(divergence, ForwardKL):
        assert (found == INF).all()
    else:
        torch.testing.assert_close(found, expected(student, teacher, divergence=divergence))
        assert all(one.isfinite().all() for one in grads(found, student.states, student.weight))


@every
@ways
def test_what_is_no_number_is_not_hidden_and_spoils_no_other_row(divergence: Divergence, way: Way) -> None:
    for side in ("student", "teacher", "few"):
        student, teacher = head(4, 3, 9, bias=False), head(4, 2, 9, seed=4)
        sound = streamed(student, teacher, divergence=divergence, way=way)
        (student if side == "student" else teacher).states.data[1] = float("nan")
        few = few_of(drawn(4, 9), 3)
        few.log_probs[1] = float("nan")
        loss = streamed(student, few if side == "few" else teacher, divergence=divergence, way=way)
        assert loss.isnan().tolist() == [False, True, False, False]
        if side != "few":
            assert torch.equal(loss[[0, 2, 3]], sound[[0, 2, 3]])
        frozen = replace(student, weight=student.weight.detach())
        (gradient,) = grads(streamed(frozen, few if side == "few" else teacher, divergence=divergence, way=way), student.states)
        assert gradient[1].isnan().all() and gradient[[0, 2, 3]].isfinite().all()


@every
@ways
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_answer_twice_costs_nothing_and_teaches_nothing(divergence: Divergence, way: Way, dtype: torch.dtype) -> None:
    student = head(6, 5, 40, dtype=dtype)
    loss = streamed(student, student, divergence=divergence, temperature=1.5, toward=0.5, way=way)
    exact = 1e-13 if dtype == torch.float64 else 1e-6
    assert loss.abs().max() < exact
    assert all(one.abs().max() < 10 * exact for one in grads(loss, student.states, student.weight, student.bias))


@every
@ways
def test_all_classes_but_one_are_whole_logits(divergence: Divergence, way: Way) -> None:
    student, teacher = head(5, 3, 8), head(5, 2, 8, seed=4)
    agree_with = streamed(student, teacher, divergence=divergence, temperature=2.0)
    found = streamed(student, few_of(teacher.logits.detach(), 7, 2.0), divergence=divergence, temperature=2.0, way=way)
    torch.testing.assert_close(found, agree_with, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(grads(found, student.states, student.weight), grads(agree_with, student.states, student.weight), rtol=1e-7, atol=1e-11)


@ways
def test_all_classes_kept_leave_no_tail(way: Way) -> None:
    agree(head(5, 3, 8), few_of(drawn(5, 8), 8), None, way, divergence=ForwardKL())


@ways
def test_a_tail_that_vanishes_for_the_student_is_still_wanted(way: Way) -> None:
    z = torch.tensor([[300.0, 0.0, 1.0, 2.0]], dtype=torch.float32, requires_grad=True)
    few = few_of(torch.tensor([[1.5, 1.0, 0.0, 0.5]]), 1)
    (found,) = torch.autograd.grad(streamed(Dense(z), few, way=way).sum(), z)
    exact = z.detach().double().requires_grad_()
    right = (few.log_tail.double().exp() * -exact[:, 1:].logsumexp(-1) + few.log_probs.double().exp()[:, 0] * -exact[:, 0] + exact.logsumexp(-1)).sum()
    torch.testing.assert_close(found.double(), torch.autograd.grad(right, exact)[0], rtol=1e-5, atol=1e-7)
    assert found[0, 1:].abs().max() > 0.1


@ways
def test_a_sampled_teacher_gives_the_forward_kls_gradient_on_average(way: Way) -> None:
    """All 27 outcomes of three draws from three classes, each by its probability (Anshumann et al. 2025, arXiv:2503.16870, sec. 4)."""
    student, y = head(1, 2, 3, bias=False), drawn(1, 3)
    p = y.softmax(-1)[0]
    mean = [torch.zeros(1, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)]
    for outcome in itertools.product(range(3), repeat=3):
        counts = torch.bincount(torch.tensor(outcome), minlength=3).double()
        order = counts.argsort(descending=True)[:2] if (counts > 0).sum() < 3 else torch.arange(3)  # a class that was not drawn fills the row up
        few = TopK((counts[order] / 3).log()[None], order[None], torch.full((1,), -INF, dtype=torch.float64), 1.0, 3)
        for total, one in zip(mean, grads(streamed(student, few, way=way), student.states, student.weight), strict=True):
            total += p[list(outcome)].prod() * one
    torch.testing.assert_close(mean, grads(streamed(student, Dense(y)), student.states, student.weight), rtol=1e-9, atol=1e-12)


@every
@ways
@pytest.mark.parametrize("near", [False, True])
def test_float32_is_as_exact_as_whole_logits_in_float32(divergence: Divergence, way: Way, near: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streaming_plan, "_WIDTH", 700)
    ours = head(6, 32, 3000, bias=False, dtype=torch.float32)
    teacher = Hidden(drawn(6, 16, dtype=torch.float32), drawn(3000, 16, dtype=torch.float32))
    if near:  # logits 0.1 apart
        teacher = Hidden(ours.states.detach() + 0.1 / 32**0.5 * drawn(6, 32, seed=3, dtype=torch.float32), ours.weight.detach())
    found, right = streamed(ours, teacher, divergence=divergence, way=way), expected(ours, teacher, divergence=divergence)
    plain = value(divergence, teacher.logits.softmax(-1), ours.logits.softmax(-1))
    assert (found - right).abs().max() < 3 * (plain - right).abs().max() + 2e-6
    for one, usual, at in zip(*(grads(of, ours.states, ours.weight) for of in (found, plain, right)), strict=True):
        assert (one - at).norm() < 3 * (usual - at).norm() + 1e-6 * at.norm()
        assert not near or (one - at).norm() < 1e-4 * at.norm()


def rounded(h: Tensor, w: Tensor, teacher: Hidden, divergence: Divergence) -> Tensor:
    """Dense logits out of a product in bfloat16, their softmax in float32."""
    return value(divergence, teacher.logits.float().softmax(-1), (h @ w.t()).float().softmax(-1))


@every
@ways
def test_bfloat16_states_and_heads_lose_nothing_on_the_way(divergence: Divergence, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streaming_plan, "_WIDTH", 300)
    h, w = drawn(24, 48).bfloat16().requires_grad_(), drawn(1000, 48).div(48**0.5).bfloat16().requires_grad_()
    for near in (False, True):
        theirs = (h.detach().float() + 0.1 * drawn(24, 48, seed=1).float() if near else drawn(24, 48, seed=1)).bfloat16()
        teacher = Hidden(theirs, w.detach())
        exact = [one.detach().double().requires_grad_() for one in (h, w)]
        right = grads(expected(Hidden(exact[0], exact[1]), Hidden(theirs.double(), w.detach().double()), divergence=divergence), *exact)
        leaves = [one.detach().float().requires_grad_() for one in (h, w)]
        # of the same numbers as float32 leaves, whose gradients are not rounded when they are handed over
        apart = grads(streamed(Hidden(leaves[0], leaves[1]), teacher, divergence=divergence, way=way), *leaves)
        returned = grads(streamed(Hidden(h, w), teacher, divergence=divergence, way=way), h, w)
        dense = grads(rounded(h, w, teacher, divergence), h, w)
        for one, handed, other, at in zip(apart, returned, dense, right, strict=True):
            error, after, theirs_error = (((found.double() - at).norm() / at.norm()).item() for found in (one, handed, other))
            assert handed.dtype == torch.bfloat16 and after < 0.004  # the rounding of what is returned
            assert error < 1e-4 and after <= theirs_error
            if near and not isinstance(divergence, TotalVariation):
                assert 5 * after < theirs_error


@ways
def test_a_frozen_head_gets_no_gradient_and_rows_may_then_be_weighed_apart(way: Way) -> None:
    student, teacher = head(5, 3, 8, bias=False), head(5, 2, 8, seed=4)
    streamed(student, teacher, way=way).sum().backward()
    assert student.weight.grad is not None and teacher.weight.grad is None and teacher.states.grad is None
    frozen = replace(student, weight=student.weight.detach())
    each = drawn(5)
    found = torch.autograd.grad((streamed(frozen, teacher, way=way) * each).sum(), student.states)
    right = torch.autograd.grad((expected(student, teacher, divergence=ForwardKL()) * each).sum(), student.states)
    torch.testing.assert_close(found, right)
    only = replace(student, states=student.states.detach())
    torch.testing.assert_close(grads(streamed(only, teacher, way=way), student.weight), grads(streamed(student, teacher, way=way), student.weight))


@ways
def test_a_head_that_is_the_embedding_too_and_is_used_twice(way: Way) -> None:
    table = drawn(9, 4).requires_grad_()
    ids, teacher = torch.tensor([0, 3, 8, 3]), Dense(drawn(4, 9, seed=2))

    def loss(compute: Any) -> Tensor:
        states = table[ids]
        return (compute(Hidden(states, table), teacher, divergence=JSD()) + 0.5 * compute(Hidden(states.tanh(), table), teacher, divergence=ReverseKL())).sum()

    found, right = loss(lambda *of, **how: streamed(*of, way=way, **how)), loss(expected)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found, table), torch.autograd.grad(right, table))


@ways
def test_no_rows_cost_nothing_and_have_a_graph(way: Way) -> None:
    student, teacher = head(0, 3, 8), head(0, 2, 8, seed=4)
    loss = streamed(student, teacher, torch.zeros(0, dtype=torch.int64), hard=0.5, way=way)
    assert loss.shape == (0,) and loss.requires_grad
    assert all((one == 0).all() for one in grads(loss, student.states, student.weight, student.bias))


def test_rows_weighed_unequally_are_refused_where_the_head_learns() -> None:
    student, teacher = head(5, 3, 8), head(5, 2, 8, seed=4)
    loss = streamed(student, teacher)
    with pytest.raises(MismatchError, match=r"weighed unequally.*give their weights as `weights`"):
        (loss * torch.arange(5)).sum().backward()
    dense = Dense(student.logits.detach().requires_grad_())  # whole logits follow any weights
    each = drawn(5)
    torch.testing.assert_close(
        torch.autograd.grad((streamed(dense, teacher) * each).sum(), dense.logits),
        torch.autograd.grad((expected(dense, teacher, divergence=ForwardKL()) * each).sum(), dense.logits),
    )


def test_it_goes_back_once_and_not_twice() -> None:
    student, teacher = head(5, 3, 8), head(5, 2, 8, seed=4)
    loss = streamed(student, teacher).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(MismatchError, match=r"goes back once.*without retain_graph"):
        loss.backward()
    for one, leaf in ((student, student.states), (Dense(drawn(5, 8).requires_grad_()), None)):
        leaf = leaf if isinstance(one, Hidden) else one.logits
        assert leaf is not None
        with pytest.raises(MismatchError, match="leave out create_graph"):
            torch.autograd.grad(streamed(one, teacher).sum(), leaf, create_graph=True)


@ways
def test_without_a_gradient_none_is_computed(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = head(5, 3, 8), head(5, 2, 8, seed=4)
    monkeypatch.setattr(passes, "go_back", lambda *_, **__: pytest.fail("a gradient was computed"))
    for divergence in EVERY:
        with torch.no_grad():
            found = streamed(student, teacher, divergence=divergence, way=way)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected(student, teacher, divergence=divergence).detach())
    still = Hidden(student.states.detach(), student.weight.detach())
    assert not streamed(still, teacher, way=way).requires_grad


@ways
def test_autocast_changes_nothing(way: Way) -> None:
    student, teacher = head(5, 3, 8, dtype=torch.float32), head(5, 2, 8, seed=4, dtype=torch.float32)
    alone = streamed(student, teacher, divergence=JSD(), way=way)
    with torch.autocast("cpu", torch.bfloat16):
        found = streamed(student, teacher, divergence=JSD(), way=way)
    assert torch.equal(found, alone)


def test_a_scaled_loss_scales_its_gradient() -> None:
    student, teacher = head(5, 3, 8), head(5, 2, 8, seed=4)
    once, scaled = (torch.autograd.grad(factor * streamed(student, teacher).sum(), (student.states, student.weight)) for factor in (1.0, 65536.0))
    assert all(torch.equal(65536.0 * one, other) for one, other in zip(once, scaled, strict=True))


def test_sides_that_do_not_fit_are_refused_in_a_line() -> None:
    student, teacher = head(5, 3, 8), head(5, 2, 8, seed=4)
    few, labels = few_of(drawn(5, 8), 3, 2.0), torch.arange(5)
    cases: list[tuple[str, Any, Any, Any, dict[str, Any]]] = [
        (r"rows are \[1, 5, 3\].*flatten them", replace(student, states=student.states[None]), teacher, None, {}),
        (r"torch.int64, which no gradient", Dense(torch.zeros(5, 8, dtype=torch.int64)), teacher, None, {}),
        (r"5 rows and the teacher \[4\]", student, head(4, 2, 8), None, {}),
        (r"hard is 1.5", student, teacher, labels, {"hard": 1.5}),
        (r"toward 2", student, teacher, labels, {"toward": 2.0}),
        (r"temperature is 0", student, teacher, labels, {"temperature": 0.0}),
        (r"without a teacher.*give hard=1.0", student, None, labels, {"hard": 0.5}),
        (r"needs as many labels.*none are given", student, teacher, None, {"hard": 0.5}),
        (r"\[4\] are given", student, teacher, labels[:4], {"hard": 0.5}),
        (r"torch.float32 \[5\] are given", student, teacher, labels.float(), {"hard": 0.5}),
        (r"label -100 is none of 8 classes.*mask out", student, teacher, torch.tensor([0, 1, -100, 2, 3]), {"hard": 0.5}),
        (r"label 8 is none of 8 classes", student, head(5, 2, 9), torch.tensor([0, 1, 8, 2, 3]), {"hard": 0.5}),
        (r"temperature 1, and the teacher is the 3 likeliest of 8 classes at temperature 2, valid there alone", student, few, None, {}),
        (r"on the way to an interpolated target", student, few, None, {"temperature": 2.0, "toward": 0.5}),
        (r"9 classes at temperature 2, and the teacher is the 3 likeliest of 8", head(5, 3, 9), few, None, {"temperature": 2.0}),
        (r"5 rows and the weights are \[4\]", student, teacher, None, {"weights": drawn(4)}),
        (r"states \[5, 3\] do not fit their head's weight \[8, 4\]", replace(student, weight=drawn(8, 4)), teacher, None, {}),
        (r"bias \[7\] does not fit its weight \[8, 3\]", replace(student, bias=drawn(7)), teacher, None, {}),
    ]
    for told, ours, theirs, of, how in cases:
        with pytest.raises(MismatchError, match=told) as error:
            streamed(ours, theirs, of, **how)
        assert "\n" not in str(error.value)
