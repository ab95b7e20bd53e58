"""A model writes: where prompts end, how tokens are drawn, and what the batch says afterwards."""

import pytest
import torch
from torch import Tensor, nn

from limbeck.bridges.writing import IGNORED, Stretches, _Rereading, _Whole, check_prompt, check_sampling, coins, drawn, put, reader, stretches, write
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.models.gpt import GPT

V = 20


class _Asks:
    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return Knowledge({"main": model(batch["input"], segment=batch.get("segment"), position=batch.get("position"))})


def gpt(context: int = 12) -> GPT:
    torch.manual_seed(0)
    return GPT((context,), V, dim=16, depth=2, heads=2, tied=False).eval()


def rows(masked: tuple[int, ...] = (0, 3, 7), width: int = 12) -> dict[str, Tensor]:
    x = torch.randint(0, V, (len(masked), width + 1), generator=torch.Generator().manual_seed(1))
    label = x[:, 1:].clone()
    for row, count in enumerate(masked):
        label[row, :count] = IGNORED
    return {"input": x[:, :-1].clone(), "label": label, "id": torch.arange(len(masked)) + 40}


def written(model: GPT, batch: Batch, some: Stretches, *, end: int | None = None, again: bool = False, seed: int = 3) -> tuple[Tensor, Tensor]:
    prompts, segment = some.prompts(batch["input"])
    every = torch.cat([segment, segment.new_ones(len(some), int(some.room.max()))], 1)
    read = _Whole(_Rereading(model, _Asks(), every), V) if again else reader(model, _Asks(), every, V)  # pyright: ignore[reportArgumentType]
    toss = coins(batch, some, seed)
    with torch.no_grad():
        return write(read, prompts, some.room, lambda logits, step, of: drawn(logits, toss(step)[of]), end)


def test_a_prompt_is_what_the_task_masks_and_a_share_of_plain_text() -> None:
    batch = rows((0, 3, 7, 12))
    batch["label"][1, 9:] = IGNORED  # padding on the right
    some = stretches(batch, 0.25)
    assert some.row.tolist() == [0, 1, 2], "a row without a label that counts has nothing to write"
    assert some.prompt.tolist() == [3, 4, 8]
    assert some.length.tolist() == [12, 9, 12]
    assert some.room.tolist() == [10, 9, 5], "as far as the row goes, and one label behind its last input"
    assert stretches(batch, 0.25, 4).room.tolist() == [4, 4, 4]


def test_documents_that_share_a_row_are_written_each_for_itself() -> None:
    batch = rows((0,), 12)
    batch["segment"] = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0]])
    batch["label"][0, 4], batch["label"][0, 9:], batch["label"][0, 5:7] = 1, IGNORED, IGNORED
    some = stretches(batch, 0.5)
    assert [some.start.tolist(), some.length.tolist(), some.prompt.tolist(), some.room.tolist()] == [[0, 5], [5, 4], [2, 3], [4, 2]]
    left = {**rows((0,), 6), "segment": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    left["label"][0, :2] = IGNORED
    some = stretches(left, 0.5)
    assert [some.start.tolist(), some.prompt.tolist(), some.room.tolist()] == [[2], [2], [3]]
    prompts, segment = some.prompts(left["input"])
    assert prompts.tolist() == left["input"][:, 2:4].tolist() and segment.tolist() == [[1, 1]]


def test_a_row_is_written_as_it_would_be_alone_and_as_a_model_that_keeps_nothing_writes_it() -> None:
    model, batch = gpt(), rows()
    some = stretches(batch, 0.25)
    tokens, lengths = written(model, batch, some)
    again, as_long = written(model, batch, some, again=True)
    assert torch.equal(lengths, as_long) and all(torch.equal(a[:n], b[:n]) for a, b, n in zip(tokens, again, lengths.tolist(), strict=True))
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        mine, count = written(model, alone, stretches(alone, 0.25))
        assert mine[0, : count[0]].tolist() == tokens[row, : lengths[row]].tolist()


def test_what_is_written_is_drawn_from_the_model_step_by_step() -> None:
    model, batch = gpt(), rows((3,))
    some = stretches(batch, 0.25)
    tokens, _ = written(model, batch, some)
    text, toss = batch["input"][:, :4], coins(batch, some, 3)
    for step in range(8):
        cumulative = model(text).logits[0, -1].double().softmax(0).cumsum(0)
        expected = int((cumulative < toss(step).double()).sum())
        assert tokens[0, step] == expected
        text = torch.cat([text, torch.tensor([[expected]])], 1)


def test_a_row_stops_behind_its_end_and_no_sooner_than_the_others() -> None:
    model, batch = gpt(), rows((1,) * 12)
    some = stretches(batch, 0.5)
    free, _ = written(model, batch, some)
    for end in range(V):
        tokens, lengths = written(model, batch, some, end=end)
        for row in range(12):
            text = free[row].tolist()
            expected = text[: text.index(end) + 1] if end in text else text
            assert tokens[row, : lengths[row]].tolist() == expected


def test_the_batch_holds_what_was_written_and_nothing_else_counts() -> None:
    batch = rows()
    some = stretches(batch, 0.25)
    tokens = torch.arange(30).view(3, 10) % V
    lengths = torch.tensor([10, 2, 5])  # the first and the last are full
    made = put(batch, some, tokens, lengths)
    for row, (prompt, count) in enumerate(zip(some.prompt.tolist(), lengths.tolist(), strict=True)):
        text = [*batch["input"][row, :prompt].tolist(), *tokens[row, :count].tolist()]
        assert made["input"][row, : len(text)].tolist() == text[:12]
        assert made["label"][row].tolist() == [IGNORED] * (prompt - 1) + text[prompt:] + [IGNORED] * (12 - prompt + 1 - count)
    assert torch.equal(made["id"], batch["id"]) and torch.equal(rows()["input"], batch["input"])


def test_draws_have_the_model_s_frequencies() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, float("-inf")])
    u = (torch.arange(40_000) + 0.5) / 40_000

    def share(**how: float | int) -> Tensor:
        return drawn(logits.expand(len(u), -1), u, **how).bincount(minlength=5) / len(u)  # pyright: ignore[reportArgumentType]

    torch.testing.assert_close(share(temperature=2.0), (logits / 2).softmax(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(share(top_k=2), torch.tensor([2.0, float("-inf"), 1.0, float("-inf"), float("-inf")]).softmax(0), atol=1e-4, rtol=0)
    p = logits.softmax(0)
    assert p[0] < 0.7 < p[0] + p[2]
    torch.testing.assert_close(share(top_p=0.7), torch.tensor([p[0], 0, p[2], 0, 0]) / (p[0] + p[2]), atol=1e-4, rtol=0)
    assert share(top_p=0.1).tolist() == [1, 0, 0, 0, 0] == share(temperature=0.0).tolist()
    assert drawn(logits[None], torch.tensor([1.0])).item() == 3, "never what cannot come"


def test_a_number_is_drawn_for_each_place_of_each_row_and_seed() -> None:
    batch = rows()
    some = stretches(batch, 0.25)
    tossed = {seed: torch.stack([coins(batch, some, seed)(step) for step in range(4)]) for seed in (0, 1)}
    assert len({*torch.cat([*tossed.values()]).flatten().tolist()}) == 24
    longer = stretches(batch, 0.5)  # the same place of the same row gives the same number, however long the prompt
    assert coins(batch, longer, 0)(0)[0] == coins(batch, some, 0)(3)[0]


def test_refusals() -> None:
    for prompt, tokens in ((0.0, None), (1.0, None), (0.5, 0)):
        with pytest.raises(RecipeError, match=r"prompt is|tokens is"):
            check_prompt(prompt, tokens)
    for how in ((-1.0, None, None), (1.0, 0, None), (1.0, None, 0.0), (float("nan"), None, None)):
        with pytest.raises(RecipeError, match="temperature is"):
            check_sampling(*how)
    with pytest.raises(MismatchError, match=r"input \[2, 3\].*take a task of text"):
        stretches({"input": torch.zeros(2, 3), "label": torch.zeros(2, dtype=torch.int64)}, 0.5)
