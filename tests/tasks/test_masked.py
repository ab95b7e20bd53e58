"""`masked`: how many tokens are hidden and how, and that it is a function of who is asked and when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.tasks.masked import Masked, masked

PAD, BEGIN, EOS, MASK = range(256, 260)
SPECIALS = (PAD, BEGIN, EOS, MASK)


def hidden(tokens: Tensor, seed: int = 0, view: int = 0, first: int = 0, **how: Any) -> dict[str, Tensor]:
    batch = {"input": tokens, "id": torch.arange(first, first + len(tokens))}
    return masked(batch, seed, view, **{"share": 0.15, "mask": MASK, "specials": SPECIALS, "vocabulary": 260, **how})


def test_fifteen_in_a_hundred_are_chosen_and_eight_one_and_one_in_ten_of_those() -> None:
    """400,000 tokens: counts within four deviations of the binomial."""
    tokens = torch.randint(0, 256, (4000, 100), generator=torch.Generator().manual_seed(0))
    batch = hidden(tokens)
    chosen = batch["label"] != -100

    def near(count: int, of: int, share: float) -> bool:
        return abs(count - of * share) < 4 * (of * share * (1 - share)) ** 0.5

    total = int(chosen.sum())
    assert near(total, tokens.numel(), 0.15)
    assert torch.equal(batch["label"][chosen], tokens[chosen])
    assert torch.equal(batch["input"][~chosen], tokens[~chosen])
    given, were = batch["input"][chosen], tokens[chosen]
    assert near(int((given == MASK).sum()), total, 0.8)
    assert near(int((given == were).sum()), total, 0.1 + 0.1 / 256)
    others = given[(given != MASK) & (given != were)]
    assert others.max() < 256, "no special token takes a place"
    assert len(others.unique()) == 256
    columns = chosen.sum(0).float()
    assert (columns - 600).abs().max() < 5 * (4000 * 0.15 * 0.85) ** 0.5, "each position alike"


def test_special_tokens_are_never_chosen() -> None:
    tokens = torch.tensor([[BEGIN, 1, 2, EOS, PAD, PAD]] * 50)
    batch = hidden(tokens, share=1.0)
    special = torch.isin(tokens, torch.tensor(SPECIALS))
    assert (batch["label"][special] == -100).all()
    assert torch.equal(batch["label"][~special], tokens[~special])


def test_special_tokens_in_the_middle_of_a_vocabulary_are_stepped_over() -> None:
    tokens = torch.full((2000, 10), 1)
    batch = hidden(tokens, share=1.0, specials=(0, 3, 4), mask=3, vocabulary=7)
    assert set(batch["input"].unique().tolist()) == {1, 2, 3, 5, 6}


def test_it_is_a_function_of_seed_view_id_and_position() -> None:
    tokens = torch.randint(0, 256, (6, 40), generator=torch.Generator().manual_seed(1))
    whole = hidden(tokens)
    for part in (slice(2, 5), slice(0, 1)):
        alone = hidden(tokens[part], first=part.start)
        assert torch.equal(alone["input"], whole["input"][part])
        assert torch.equal(alone["label"], whole["label"][part])
    for other in (hidden(tokens, seed=1), hidden(tokens, view=1), hidden(tokens, first=1)):
        assert not torch.equal(other["label"], whole["label"])


def made(folder: Path, **how: Any) -> Masked:
    (folder / "a.txt").write_text("".join(f"line {number} of some text\n" for number in range(40)))
    return Masked(**{"root": str(folder / "a.txt"), "tokenizer": {"kind": "bytes"}, "context": 12, **how})


def rows(task: Masked, split: Any, epoch: int = 0, **how: Any) -> dict[str, Tensor]:
    return dict(next(iter(task.loader(split, batch_size=task.facts().examples if split == "train" else 1000, **how).batches(epoch))))


@pytest.mark.parametrize("packing", ["stream", "padded"])
def test_rows_stand_between_begin_and_end_and_hold_the_text_once(tmp_path: Path, packing: Any) -> None:
    task = made(tmp_path, packing=packing, documents="lines", share=1e-9, validation=0.0, test=0.0)
    batch = rows(task, "train", whole=True)
    tokens, attention = batch["input"], batch["attention"]
    assert torch.equal(attention, (tokens != PAD).long())
    assert (tokens[:, 0] == BEGIN).all()
    lengths = attention.sum(1)
    assert (tokens.gather(1, lengths[:, None] - 1) == EOS).all()
    text = b"".join(bytes(one for one in row if one < 256) for row in tokens.tolist())
    assert text == (tmp_path / "a.txt").read_bytes().replace(b"\n", b"")
    assert (batch["label"] == -100).all()


def test_epochs_mask_anew_views_repeat_and_other_splits_stand_still(tmp_path: Path) -> None:
    task = made(tmp_path)
    first, second = (rows(task, "train", epoch, whole=True) for epoch in (0, 1))
    assert not torch.equal(first["label"], second["label"])
    assert torch.equal(rows(task, "train", 5, whole=True, views=2)["label"], second["label"])
    assert torch.equal(rows(task, "test", 0)["label"], rows(task, "test", 3)["label"])
    shuffled = next(iter(task.loader("train", batch_size=5).batches(1)))
    assert torch.equal(shuffled["label"], second["label"][shuffled["id"]]), "whatever the order"


def test_sentences_of_a_table_are_rows_and_their_vocabulary_is_that_of_text(tmp_path: Path) -> None:
    from limbeck.tasks.text import Text

    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("".join(f"some {name} sentence {number}\t{number % 2}\n" for number in range(10)))
    how: dict[str, Any] = {"data": "sst2", "root": str(tmp_path), "tokenizer": {"kind": "bpe", "size": 300}}
    task, text = Masked(**how, context=16), Text(**how, context=16)
    assert task.facts().examples == 10
    assert task.splits() == ("train", "validation", "test")
    assert task.facts().preprocess["tokenizer"] == text.facts().preprocess["tokenizer"]
    assert torch.equal(task.made.fields["input"], text.made.fields["input"])


@pytest.mark.parametrize("how", [{"share": 0.0}, {"share": 1.5}, {"context": 2}, {"packing": "isolated"}, {"data": "books"}, {"root": ""}])
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        made(tmp_path, **how)
