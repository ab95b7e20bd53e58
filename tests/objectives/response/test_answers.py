"""Answers of any form and shape as one loss for each prediction: what is masked costs nothing, and how a batch is divided changes nothing."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, TopK
from limbeck.objectives.response import _answers as answers
from limbeck.objectives.response._answers import compared, told
from limbeck.objectives.response._divergences import JSD
from limbeck.objectives.response._streaming import streamed


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import _streamed_ranks  # pyright: ignore[reportMissingImports]

    return _streamed_ranks


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def forms(v: int = 9) -> dict[str, Any]:
    log_p = drawn(2, 5, v).log_softmax(-1)
    values, indices = log_p.topk(3)
    few = TopK(values, indices, log_p.scatter(-1, indices, float("-inf")).logsumexp(-1), 1.0, v)
    return {"hidden": Hidden(drawn(2, 5, 3), drawn(v, 3)), "dense": Dense(drawn(2, 5, v)), "few": few}


def row(answer: Any, at: tuple[int, int]) -> Any:
    """One prediction of an answer, as a batch of one."""
    if isinstance(answer, Hidden):
        return Hidden(answer.states[at][None], answer.weight)
    if isinstance(answer, Dense):
        return Dense(answer.logits[at][None])
    return TopK(answer.log_probs[at][None], answer.indices[at][None], answer.log_tail[at][None], 1.0, answer.classes)


@pytest.mark.parametrize("ours", ["hidden", "dense"])
@pytest.mark.parametrize("theirs", ["hidden", "dense", "few"])
def test_every_prediction_that_counts_is_compared_with_its_own(ours: str, theirs: str) -> None:
    answer, teacher, labels = forms()[ours], forms()[theirs], torch.arange(10).reshape(2, 5) % 9
    mask, weights = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]]), drawn(2, 5)
    how = {"divergence": JSD(), "hard": 0.3}
    for chosen in (None, mask):
        spoilt = labels if chosen is None else labels.masked_fill(~chosen, -100)
        found = compared(Knowledge({"main": answer}, mask=chosen), teacher, spoilt, weights=weights, **how)
        assert found.shape == (2, 5)
        for at in itertools.product(range(2), range(5)):
            alone = streamed(row(answer, at), row(teacher, at), labels[at][None], **how)[0] * weights[at]
            torch.testing.assert_close(found[at], alone if chosen is None or chosen[at] else torch.zeros((), dtype=torch.float64))


def test_what_does_not_count_is_left_out_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(answers, "streamed", lambda ours, *_, **__: (seen.append(len(ours.states)), ours.states.sum(-1))[1])
    mask = torch.tensor([[True, False, False, False, False], [False, False, True, False, True]])
    compared(Knowledge({"main": forms()["hidden"]}, mask=mask), forms()["few"])
    assert seen == [3]


@pytest.mark.parametrize("ours", ["hidden", "dense"])
def test_where_nothing_counts_the_loss_is_nothing_and_has_a_graph(ours: str) -> None:
    answer = forms()[ours]
    leaf = answer.states.requires_grad_() if ours == "hidden" else answer.logits.requires_grad_()
    loss = compared(Knowledge({"main": answer}, mask=torch.zeros(2, 5, dtype=torch.bool)), forms()["hidden"], torch.full((2, 5), -100), hard=0.5)
    assert (loss == 0).all() and (torch.autograd.grad(loss.sum(), leaf)[0] == 0).all()


@pytest.mark.parametrize("how", [{}, {"way": "vocabulary"}, {"tied": True}, {"toward": 0.4}, {"divergence": "reverse_kl", "hard": 0.0}], ids=str)
def test_one_batch_or_several_give_the_same_gradient(ranks: Any, how: dict[str, Any]) -> None:
    whole, batch = None, ranks.rows()
    for size in (8, 4, 1):  # a row of no tokens is a batch of its own
        offline = ranks.scheme(**how)
        losses = [offline({name: field[start : start + size] for name, field in batch.items()}) for start in range(0, 8, size)]
        count = sum(one.count for one in losses)
        assert count == 27
        loss = sum(one.sums["student"] / count for one in losses)
        assert isinstance(loss, Tensor)
        loss.backward()
        found = [loss.detach(), *(one.grad for one in offline.student.parameters())]
        whole = whole or found
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-7)


def test_two_processes_give_the_gradient_of_one_with_the_head_unsharded_inside(ranks: Any, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(ranks.rank, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    found = torch.load(tmp_path / "found.pt")
    for tied in (False, True):
        offline = ranks.scheme(tied=tied)
        offline(ranks.rows()).loss.backward()
        right = {name: one.grad for name, one in offline.student.named_parameters()}
        for name in ("ddp", "fsdp"):
            torch.testing.assert_close(found[f"{name} {tied}"], right, rtol=1e-5, atol=1e-7)
    assert found["apart"].startswith("MismatchError: a head is sharded over processes where the loss is computed")


def test_the_student_learns_through_its_embedding_and_its_head(ranks: Any) -> None:
    offline = ranks.scheme(tied=True)
    optimizer = torch.optim.Adam(offline.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = offline(ranks.rows()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_line_tells_how_it_is_computed() -> None:
    states, head = torch.zeros(4, 256, 2), nn.Linear(2, 50257)
    student, mask = Hidden(states, head.weight), torch.arange(1024).reshape(4, 256) < 900
    assert told(Knowledge({"main": Dense(drawn(2, 5))}), Dense(drawn(2, 5))) is None
    line = told(Knowledge({"main": student}, mask=mask), Hidden(states, nn.Linear(2, 50304).weight))
    assert line is not None and line.startswith("900 tokens by a vocabulary of 50,257, streamed: 256 rows at a time, ") and "MB of buffers" in line
    assert line.endswith("; of 50,257 and 50,304 entries the first 50,257 count")
    tight = told(Knowledge({"main": student}), None, budget=9_000_000)
    assert tight is not None and "of the vocabulary at a time" in tight


def test_answers_that_do_not_fit_are_refused_in_a_line() -> None:
    all_of, mask = forms(), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(MismatchError, match=r"3 likeliest of 9 classes.*nothing can be learnt from"):
        compared(Knowledge({"main": all_of["few"]}), all_of["dense"])
    with pytest.raises(MismatchError, match=r"answers \[2, 5\] predictions and the teacher \[5, 2\]"):
        compared(Knowledge({"main": all_of["dense"]}), Dense(drawn(5, 2, 9)))
    with pytest.raises(MismatchError, match=r"the mask are \[2, 4\]"):
        compared(Knowledge({"main": all_of["dense"]}, mask=mask[:, :4]), all_of["dense"])
    with pytest.raises(MismatchError, match=r"the labels are \[10\]"):
        compared(Knowledge({"main": all_of["dense"]}, mask=mask), all_of["dense"], torch.zeros(10, dtype=torch.int64), hard=0.5)
    with pytest.raises(MismatchError, match="label -100 is none of 9 classes"):
        compared(Knowledge({"main": all_of["dense"]}), all_of["dense"], torch.full((2, 5), -100), hard=0.5)
