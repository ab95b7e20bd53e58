"""The same bytes in two tokenizers' tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.bridges.vocabulary import spelling
from limbeck.core.errors import DataError, MismatchError
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Task
from limbeck.transfer._retold import retold, spelt
from limbeck.transfer.retokenized import Retokenized, twins

TEXT = "The still drips; naïve café \u2014 \U0001f600 and what was large is small.\n" * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    (path / "book.txt").write_text(TEXT)
    lines = [{"prompt": f"{at} plus {at} is ", "completion": f"{2 * at}, naïve"} for at in range(30)]
    (path / "sums.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return path


BYTES, BPE, LARGER = {"kind": "bytes"}, {"kind": "bpe", "size": 290}, {"kind": "bpe", "size": 330}


def task(folder: Path, tokenizer: dict[str, Any], data: str = "text", **options: Any) -> Task:
    root = folder / ("book.txt" if data == "text" else "sums.jsonl")
    return build("tasks", "language", {"data": data, "root": str(root), "tokenizer": tokenizer, "context": 24, "validation": 0, "test": 0, **options})


def batches(student: Task, teacher: Task, **how: Any) -> list[Batch]:
    return [*Retokenized(teacher).loader(student, **{"batch_size": 1, "seed": 0, **how}).batches(0)]


@pytest.mark.parametrize(("ours", "theirs"), [(BYTES, BPE), (BPE, BYTES), (BPE, LARGER), (BPE, BPE)], ids=["up", "down", "other", "same"])
@pytest.mark.parametrize("data", ["text", "jsonl"])
@pytest.mark.parametrize("packing", ["stream", "isolated", "padded"])
def test_both_sides_read_the_same_bytes_and_say_which(folder: Path, ours: Any, theirs: Any, data: str, packing: str) -> None:
    student, teacher = task(folder, ours, data, packing=packing), task(folder, theirs, data, packing=packing, context=100)
    own, other = spelling(student.facts().preprocess), spelling(teacher.facts().preprocess)
    seen = 0
    for batch in batches(student, teacher):
        row = {name: value[0].tolist() for name, value in batch.items()}
        for side, words in (("", own), ("teacher_", other)):
            starts, ends, x, label = (row[f"{side}{name}"] for name in ("starts", "ends", "input", "label"))
            spans = [(start, end) for start, end in zip(starts, ends, strict=True) if start >= 0]
            assert spans == sorted(spans) and all(start < end for start, end in spans)
            for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
                if start >= 0 and label[at] >= 0:
                    assert end - start == len(words.bytes[label[at]] or b".")
                    if at + 1 < len(x) and starts[at + 1] == end:
                        assert x[at + 1] == label[at]
        said = [{}, {}]
        for number, (side, words) in enumerate((("", own), ("teacher_", other))):
            for start, end, one in zip(row[f"{side}starts"], row[f"{side}ends"], row[f"{side}label"], strict=True):
                if one >= 0:
                    spells = words.bytes[one] or b"\xff"
                    said[number] |= {start + at: byte for at, byte in enumerate(spells)}
                    assert len(spells) == end - start
        assert said[1].items() <= said[0].items(), "a label of the teacher's counts where all of its bytes count"
        seen += len(said[1])
        if packing != "stream" and ours is not BYTES:
            assert len(said[1]) >= 0.5 * len(said[0])
    assert seen > 100


def test_where_tokenizers_agree_nothing_is_changed(folder: Path) -> None:
    student = task(folder, BPE, packing="isolated", documents="lines")
    for batch in batches(student, task(folder, BPE, packing="isolated", documents="lines"), batch_size=2):
        for name in ("label", "starts", "ends"):
            real = batch["starts"] >= 0
            assert torch.equal(batch[f"teacher_{name}"][batch["teacher_starts"] >= 0], batch[name][real])
        assert torch.equal(batch["teacher_input"][batch["teacher_starts"] >= 0], batch["input"][real])
        assert torch.equal(batch["twins"][0], torch.arange(student.facts().classes))


def test_twins_spell_the_same(folder: Path) -> None:
    ours, theirs = (spelling(task(folder, one).facts().preprocess) for one in (BYTES, BPE))
    found = twins(theirs, ours)
    for one, twin in enumerate(found.tolist()):
        spells = theirs.bytes[one]
        assert (twin >= 0) == (spells is None or len(spells) == 1)
        if spells is not None and twin >= 0:
            assert ours.bytes[twin] == spells
    assert found[theirs.roles["eos"]] == ours.roles["eos"] == 256
    assert sum(one >= 0 for one in found.tolist()) == 257 == len({*found.tolist()} - {-1})


def test_of_a_character_that_an_edge_cuts_nothing_is_read(folder: Path) -> None:
    words, other = spelling(task(folder, BYTES).facts().preprocess), spelling(task(folder, BPE).facts().preprocess)
    text = "é\U0001f600z".encode()
    row = spelt([*text[1:4], 0], [*text[2:5], -100], None, words, "row 3")  # begins in é, ends in the emoji
    assert [piece.text for piece in row.stretches[0]] == [] and row.starts == [1, 2, 3, -1]
    row = spelt([*text[1:6]], [*text[2:7]], None, words, "row 3")
    assert [(piece.start, piece.text) for piece in row.stretches[0]] == [(1, "\U0001f600z")]
    made = retold(row, [other.encode(["\U0001f600z"])], other, "row 3")
    assert made["starts"][0] >= 2 and made["ends"][-1] == 6
    with pytest.raises(DataError, match="row 3 is no UTF-8 in its middle"):
        spelt([65, 0xC3, 65, 66], [0xC3, 65, 66, 67], None, words, "row 3")


def test_rows_that_do_not_fit_and_tasks_that_read_no_text_are_refused(folder: Path) -> None:
    with pytest.raises(MismatchError, match=r"row \d+ comes to \d+ of the teacher's tokens, and its context is 24: raise the partner's context"):
        batches(task(folder, BPE), task(folder, BYTES))
    digits = build("tasks", "image", {"data": "digits", "subset": 64})
    with pytest.raises(MismatchError, match="reads no tokens"):
        batches(digits, task(folder, BYTES))
    with pytest.raises(MismatchError, match="own_tokens"):
        batches(task(folder, BYTES), task(folder, BPE), views=1)
