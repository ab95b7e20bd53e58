"""The teacher writes the transfer set, once, whatever is killed meanwhile; every epoch reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import ArtifactError, DataError, LockedError, MismatchError, RecipeError
from limbeck.core.files import lock
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Task
from limbeck.schemes.offline import Offline
from limbeck.transfer.written import Beam, Greedy, Written

T = 12


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("book") / "train.jsonl"
    lines = [{"prompt": f"{at % 7}+{at % 5}=", "completion": str(at % 7 + at % 5)} for at in range(40)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    options = {"data": "jsonl", "root": str(path), "tokenizer": {"kind": "bytes"}, "context": T, "packing": "padded", "validation": 0.2, "test": 0}
    return build("tasks", "language", options)


@pytest.fixture
def writer(book: Task) -> nn.Module:
    torch.manual_seed(2)
    made = build("models", "gpt", {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.2}, in_shape=(T,), classes=book.facts().classes)
    with torch.no_grad():
        made.embed.weight.mul_(20)  # a mind of its own
    return made


def epoch(written: Written, task: Task, number: int = 0, size: int = 5, **how: Any) -> dict[int, tuple[list[int], list[int]]]:
    found = {}
    for batch in written.loader(task, **{"batch_size": size, "seed": 4, **how}).batches(number):
        for one, x, label in zip(batch["id"].tolist(), batch["input"].tolist(), batch["label"].tolist(), strict=True):
            found[one] = (x, label)
    return found


def shown(book: Task) -> dict[int, tuple[list[int], list[int]]]:
    batches: list[Batch] = [*book.loader("train", batch_size=100, whole=True).batches(0)]
    return {one: (x, label) for batch in batches for one, x, label in zip(batch["id"].tolist(), batch["input"].tolist(), batch["label"].tolist(), strict=True)}


def test_prompts_stay_and_answers_are_the_writer_s(book: Task, writer: nn.Module) -> None:
    made, data = epoch(Written(writer, how=Greedy()), book), shown(book)
    writer.eval()
    for one, (x, label) in made.items():
        before = next(at for at, value in enumerate(data[one][1]) if value >= 0)
        assert x[: before + 1] == data[one][0][: before + 1] and label[:before] == [-100] * before
        wanted = [value for value in label if value >= 0]
        assert label[before : before + len(wanted)] == wanted
        text = x[: before + 1]
        for token in wanted:
            with torch.no_grad():
                assert int(writer(torch.tensor([text])).logits[0, -1, : book.facts().classes].argmax()) == token
            text.append(token)
        assert x[: len(text)] == text[:T]
        assert wanted[-1] == 256 or len(text) == T + 1, "it goes on to its end or to the end of its row"


def test_what_is_written_depends_on_seed_and_row_alone(book: Task, writer: nn.Module, tmp_path: Path) -> None:
    first = epoch(Written(writer), book)
    kept = Written(writer, tmp_path / "kept", shard=9, batch=4)
    whole = {one: row for number in range(3) for one, row in epoch(kept, book, number).items()}
    assert whole == {one: row for number in range(3) for one, row in epoch(Written(writer), book, number).items()}
    other = Written(writer, tmp_path / "kept", shard=9, batch=4)
    assert epoch(other, book, 2) == epoch(kept, book, 2)
    ranks = [epoch(kept, book, 1, rank=rank, world=2, size=3) for rank in (0, 1)]
    assert not ranks[0].keys() & ranks[1].keys() and all(whole.get(one, row) == row for rank in ranks for one, row in rank.items())
    assert epoch(Written(writer), book, seed=5) != first
    assert writer.training, "the writer's mode is as it was"


def test_a_kill_loses_a_shard_at_the_most(book: Task, writer: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(Written(writer, tmp_path / "whole", shard=8), book)
    asked: list[int] = []
    plain = Written.write

    def killed(self: Written, task: Task, batch: Batch, seed: int) -> dict[str, Tensor]:
        asked.append(len(batch["id"]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(self, task, batch, seed)

    monkeypatch.setattr(Written, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        epoch(Written(writer, tmp_path / "cut", shard=8), book)
    assert len([*(tmp_path / "cut").glob("*.safetensors")]) == 2
    assert epoch(Written(writer, tmp_path / "cut", shard=8), book) == whole
    assert asked == [8, 8, 8, 8, 8], "of 32 rows the first 16 are not written again"
    assert epoch(Written(None, tmp_path / "cut", shard=8), book) == whole, "a finished set is read without its writer"
    assert len(asked) == 5


def test_a_set_of_something_else_or_damaged_is_refused(book: Task, writer: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    epoch(Written(writer, folder, shard=16), book)
    with pytest.raises(MismatchError, match=r"was written otherwise \(seed differs\)"):
        epoch(Written(writer, folder, shard=16), book, seed=5)
    with pytest.raises(MismatchError, match=r"\(tokens differs\)"):
        epoch(Written(writer, folder, shard=16, tokens=2), book)
    with torch.no_grad():
        next(writer.parameters()).add_(1)
    with pytest.raises(MismatchError, match=r"\(writer differs\)"):
        epoch(Written(writer, folder, shard=16), book)
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=rf"{shard.name} is damaged: delete it"):
        epoch(Written(None, folder, shard=16), book)
    shard.unlink()
    with pytest.raises(ArtifactError, match="no writer to go on"):
        epoch(Written(None, folder, shard=16), book)
    with lock(folder), pytest.raises(LockedError):
        epoch(Written(None, folder, shard=16), book)
    (folder / "written.json").unlink()
    with pytest.raises(ArtifactError, match="nobody knows by whom"):
        epoch(Written(writer, folder, shard=16), book)


def test_of_a_beam_the_likeliest_or_the_nearest_to_the_data(book: Task, writer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(book.loader("train", batch_size=3, whole=True).batches(0))
    wanted = [[value for value in label if value >= 0] for label in batch["label"].tolist()]
    beam = [[[7], wanted[0], [8]], [wanted[1][:1], [9], wanted[1]], [[7], [8], [9]]]

    def found(_read: object, prompts: Tensor, room: Tensor, size: int, _end: int | None) -> tuple[Tensor, Tensor, Tensor]:
        assert size == 3
        tokens = torch.tensor([[[*text, 0, 0, 0][:3] for text in one] for one in beam])
        return tokens, torch.tensor([[len(text) for text in one] for one in beam]), torch.zeros(3, 3)

    monkeypatch.setattr("limbeck.transfer.written.searched", found)
    for interpolated, places in ((False, (0, 0, 0)), (True, (1, 2, 0))):
        made = Written(writer, how=Beam(size=3, interpolated=interpolated)).write(book, batch, 0)
        assert [[value for value in label if value >= 0] for label in made["label"].tolist()] == [one[at] for one, at in zip(beam, places, strict=True)]


def test_the_likeliest_of_a_beam_is_likelier_than_what_greed_finds(book: Task, writer: nn.Module) -> None:
    def likelihoods(how: Beam | Greedy) -> Tensor:
        written = Written(writer, how=how, tokens=3)
        batch = next(written.loader(book, batch_size=20, seed=0).batches(0))
        writer.eval()
        with torch.no_grad():
            return -book.loss(book.forward(writer, batch), batch).sum(1)

    greedy, beam = likelihoods(Greedy()), likelihoods(Beam(size=6))
    assert bool((beam >= greedy - 1e-4).all()) and bool((beam > greedy + 1e-3).any())
    torch.testing.assert_close(likelihoods(Beam(size=1)), greedy)


def test_any_objective_counts_on_what_was_written(book: Task, writer: nn.Module) -> None:
    loader = Written(writer, tokens=2).loader(book, batch_size=5, seed=0)
    batch = next(loader.batches(0))
    student = build("models", "gpt", {"dim": 8, "depth": 1, "heads": 1}, in_shape=(T,), classes=book.facts().classes)
    objectives = [build("objectives", "response.divergence", {}), build("objectives", "supervised", {})]
    losses = Offline(student, writer, objectives, book, batch)(batch)
    assert losses.count == (batch["label"] >= 0).sum() <= 10 and losses.loss.isfinite()
    with torch.no_grad():
        expected = book.loss(book.forward(student, batch), batch).sum()
    torch.testing.assert_close(losses.parts["supervised"], expected)


def test_options_and_tasks_that_cannot_be_meant(book: Task, writer: nn.Module, tmp_path: Path) -> None:
    for options in ({"prompt": 1.0}, {"tokens": 0}, {"batch": 0}, {"how": {"kind": "sample", "temperature": 0.0}}, {"how": {"kind": "beam", "size": 0}}):
        with pytest.raises(RecipeError):
            build("transfer", "written", options, writer)
    with pytest.raises(MismatchError, match="a cached teacher knows what the data say"):
        Written(writer).loader(book, batch_size=2, views=1)
    digits = build("tasks", "image", {"data": "digits", "subset": 64})
    with pytest.raises(MismatchError, match="take a task of text"):
        next(Written(writer).loader(digits, batch_size=8).batches(0))
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "a", "completion": "b"}) for _ in range(8)))
    task = build("tasks", "language", {"data": "jsonl", "root": str(path), "tokenizer": {"kind": "bytes"}, "context": T, "packing": "padded", "test": 0.2})
    task.made.fields["label"].fill_(-100)
    with pytest.raises(DataError, match="no training row has anything to write"):
        Written(writer, tmp_path / "kept").loader(task, batch_size=2)
