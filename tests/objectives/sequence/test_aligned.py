"""Alignment by bytes: the ordinary divergence where both divide alike, chunks where they do not, each against its definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge
from limbeck.objectives.response.divergence import divergence_loss
from limbeck.objectives.sequence import _pieces
from limbeck.objectives.sequence.aligned import Aligned, shared

DIVERGENCES: list[Any] = ["forward_kl", "reverse_kl", {"kind": "jsd", "beta": 0.3}, "total_variation"]


def logits(*size: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(count: int, width: int, classes: int) -> dict[str, Tensor]:
    """A batch in which both tokenizers are one."""
    label = torch.randint(0, classes, (count, width), generator=torch.Generator().manual_seed(3))
    starts = torch.arange(0, 2 * width, 2).expand(count, -1)
    text = {"label": label, "starts": starts, "ends": starts + 2}
    return {**text, **{f"teacher_{name}": value for name, value in text.items()}, "twins": torch.arange(classes).expand(count, -1)}


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_between_equal_tokenizers_it_is_the_ordinary_divergence(divergence: Any, temperature: float) -> None:
    z, other, batch = logits(3, 6, 9).requires_grad_(), logits(3, 6, 9, seed=1), same(3, 6, 9)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, :2] = mask[2, 4:] = False
    for one in (None, mask):
        found = Aligned(divergence=divergence, temperature=temperature)(
            Knowledge({"main": Dense(z)}, mask=one), Knowledge({"main": Dense(other)}, mask=one), batch
        )
        expected = divergence_loss(z, other, divergence=divergence, temperature=temperature)
        expected = expected if one is None else torch.where(one, expected, 0.0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), z)[0], torch.autograd.grad(expected.sum(), z)[0], rtol=1e-9, atol=1e-12)


def kl(p: list[float], q: list[float]) -> float:
    a, b = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    return float(torch.where(a > 0, a * (a / b).log(), 0.0).sum())


def test_what_both_have_is_compared_entry_by_entry_and_the_rest_as_one() -> None:
    q, p = logits(2, 5).log_softmax(-1), logits(2, 4, seed=1).log_softmax(-1)
    mine, yours = shared(q, p, torch.tensor([3, -1, 0, -1]))  # the student's 1, 2, 4 and the teacher's 1, 3 are nobody else's
    for row in range(2):
        a, b = q[row].exp().tolist(), p[row].exp().tolist()
        torch.testing.assert_close(mine[row].exp(), torch.tensor([a[0], 0, 0, a[3], 0, a[1] + a[2] + a[4]], dtype=torch.float64))
        torch.testing.assert_close(yours[row].exp(), torch.tensor([b[2], 0, 0, b[0], 0, b[1] + b[3]], dtype=torch.float64))
    mine, yours = shared(q, logits(2, 7, seed=1).log_softmax(-1), torch.tensor([3, -1, 0, 4, 2, 1, -1]))
    assert bool((mine[:, -1] == float("-inf")).all()) and bool((yours[:, -1] == float("-inf")).all()), "the student has nothing of its own"
    torch.testing.assert_close(mine[:, :-1], q)


def test_chunks_of_several_tokens_are_compared_by_their_probability() -> None:
    """Student: a|b|cd|e, teacher: a|bc|d|e of which `a` was read. Chunks: b+cd against bc+d, and e alone on both sides."""
    z, other = logits(1, 3, 5).requires_grad_(), logits(1, 3, 6, seed=1)
    label, theirs = torch.tensor([[1, 2, 4]]), torch.tensor([[5, 3, 0]])
    twins = torch.tensor([[4, 0, -1, -1, 1, -1]])  # both sides have entries of their own
    batch = {
        "label": label, "starts": torch.tensor([[1, 2, 4]]), "ends": torch.tensor([[2, 4, 5]]),
        "teacher_label": theirs, "teacher_starts": torch.tensor([[1, 3, 4]]), "teacher_ends": torch.tensor([[3, 4, 5]]), "twins": twins,
    }  # fmt: skip
    found = Aligned()(Knowledge({"main": Dense(z)}), Knowledge({"main": Dense(other)}), batch)
    q, p = z.detach()[0].softmax(-1), other[0].softmax(-1)
    ours, wise = float(q[0, 1] * q[1, 2]), float(p[0, 5] * p[1, 3])
    both = [kl([wise, 1 - wise], [ours, 1 - ours])]
    mine = [float(q[2, 4]), float(q[2, 0]), float(q[2, 1])]
    yours = [float(p[2, 0]), float(p[2, 1]), float(p[2, 4])]
    both.append(kl([*yours, 1 - sum(yours)], [*mine, 1 - sum(mine)]))
    torch.testing.assert_close(found, torch.tensor([[0.0, both[0], both[1]]], dtype=torch.float64), rtol=1e-8, atol=1e-10)
    assert torch.autograd.grad(found.sum(), z)[0].isfinite().all()
    # a label that does not count takes its whole chunk along, and no other
    mask = torch.tensor([[False, True, True]])
    found = Aligned()(Knowledge({"main": Dense(z)}, mask=mask), Knowledge({"main": Dense(other)}), {**batch, "label": torch.tensor([[-100, 2, 4]])})
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, both[1]]], dtype=torch.float64), rtol=1e-8, atol=1e-10)


def test_states_and_a_head_give_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = same(2, 5, 7)
    states, weight, other = logits(2, 5, 3), logits(7, 3, seed=1), logits(2, 5, 7, seed=2)
    told = []
    for most in (1 << 24, 20):
        monkeypatch.setattr(_pieces, "_LOGITS", most)
        leaves = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = Aligned()(Knowledge({"main": Hidden(leaves[0], leaves[1])}), Knowledge({"main": Dense(other)}), batch)
        told.append([loss, *torch.autograd.grad(loss.sum(), leaves)])
    for one, piece in zip(*told, strict=True):
        torch.testing.assert_close(one, piece)


def test_sure_answers_stay_finite() -> None:
    batch = {**same(1, 2, 3), "teacher_starts": torch.tensor([[0, 3]]), "teacher_ends": torch.tensor([[3, 4]])}  # one chunk of two tokens
    sure = torch.full((1, 2, 3), -1e4).scatter(2, batch["label"][..., None], 1e4).requires_grad_()
    other = torch.full((1, 2, 3), -1e4).scatter(2, (batch["label"][..., None] + 1) % 3, 1e4)
    for teacher in (other, sure.detach()):
        loss = Aligned()(Knowledge({"main": Dense(sure)}), Knowledge({"main": Dense(teacher)}), batch)
        assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), sure)[0].isfinite().all()


def test_refusals() -> None:
    z, batch = logits(2, 3, 4), same(2, 3, 4)
    student = teacher = Knowledge({"main": Dense(z)})
    with pytest.raises(RecipeError, match="temperature"):
        Aligned(temperature=0.0)
    with pytest.raises(RecipeError, match="no divergence 'kullback'"):
        Aligned(divergence="kullback")  # pyright: ignore[reportArgumentType]
    with pytest.raises(MismatchError, match=r"starts is \[2, 2\] of answers to \[2, 3\] tokens"):
        Aligned()(student, teacher, {**batch, "starts": batch["starts"][:, :2]})
    with pytest.raises(MismatchError, match="tells of 9 entries of the teacher's vocabulary, and the teacher answers 4"):
        Aligned()(student, teacher, {**batch, "twins": torch.zeros(2, 9, dtype=torch.int64)})
