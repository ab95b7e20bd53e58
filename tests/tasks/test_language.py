"""`language`: what is predicted, from what, in which split, and what the data may not be."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Hidden
from limbeck.tasks._tokens import BPE, Bytes
from limbeck.tasks.language import Language, vocabulary_of

BYTES = {"kind": "bytes"}
EOS = 256


class Bigram(nn.Module):
    """Says of each token what came after it, and of the end whatever is likeliest."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.states, self.head = nn.Embedding(vocabulary, 3), nn.Parameter(torch.randn(vocabulary, 3))

    def forward(self, input: Tensor, segment: Tensor | None = None, position: Tensor | None = None) -> Hidden:
        return Hidden(self.states(input), self.head)


def written(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


def made(root: str, **how: Any) -> Language:
    return Language(**{"root": root, "tokenizer": BYTES, "context": 8, "validation": 0.0, "test": 0.0, **how})


def labels(task: Language, split: Any) -> list[int]:
    fields = [batch["label"] for batch in task.loader(split, batch_size=3, whole=True).batches(0)]
    return [one for one in torch.cat(fields).flatten().tolist() if one != -100]


TEXT = "".join(f"speaker {number}:\nsome words\n\n" for number in range(12))


@pytest.mark.parametrize("packing", ["stream", "isolated", "padded"])
def test_every_byte_of_every_split_is_predicted_once_and_none_twice(tmp_path: Path, packing: Any) -> None:
    task = made(written(tmp_path, a=TEXT), packing=packing, documents="paragraphs", validation=0.2, test=0.3)
    facts = task.facts()
    assert task.splits() == ("train", "validation", "test")
    assert (facts.in_shape, facts.classes) == ((8,), 257)
    paragraphs = [f"speaker {number}:\nsome words" for number in range(12)]
    bounds = {"train": paragraphs[:6], "validation": paragraphs[6:8], "test": paragraphs[8:]}
    for split, held in bounds.items():
        expected = Counter([byte for text in held for byte in text.encode()] + [EOS] * len(held))
        assert Counter(labels(task, split)) == expected
        assert facts.preprocess["tokens"][split] == expected.total()
        assert facts.preprocess["bytes"][split] == expected.total() - len(held)


def test_ids_are_unique_over_all_splits(tmp_path: Path) -> None:
    task = made(written(tmp_path, a=TEXT), validation=0.2, test=0.2)
    ids = [one for split in task.splits() for batch in task.loader(split, batch_size=4, whole=True).batches(0) for one in batch["id"].tolist()]
    assert sorted(ids) == list(range(len(ids)))
    assert task.facts().examples == len(list(task.loader("train", batch_size=1, whole=True).batches(0)))


def test_a_single_text_is_cut_at_an_end_of_line_and_nothing_of_the_end_is_trained_on(tmp_path: Path) -> None:
    text = "".join(f"{number:04d} is the line\n" for number in range(100))
    task = made(written(tmp_path, a=text), validation=0.1, test=0.2)
    parts = [bytes(one for one in labels(task, split) if one != EOS).decode() for split in ("train", "validation", "test")]
    assert "".join(parts) == text
    assert [part.count("\n") for part in parts] == [70, 10, 20]


def test_files_of_a_folder_are_documents_and_named_ones_are_splits(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    free = made(written(one, b="second", a="first", c="third"), packing="padded", test=0.3)
    assert [bytes(labels(free, split)[:-1]) if split == "test" else None for split in free.splits()][-1] == b"third"
    named = made(written(two, train="to train", valid="to validate", test="to test"), validation=0.5, test=0.4)
    assert named.splits() == ("train", "validation", "test")
    assert [bytes(one for one in labels(named, split) if one != EOS) for split in named.splits()] == [b"to train", b"to validate", b"to test"]


def test_a_tokenizer_learns_from_the_training_split_alone(tmp_path: Path) -> None:
    def names(end: str) -> tuple[str, ...]:
        (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 20 + end)
        return Language(root=str(tmp_path / "a.txt"), tokenizer=BPE(size=270), validation=0.1, test=0.2).facts().class_names

    assert names("zebra zebra zebra\n" * 7) == names("quick quick quick\n" * 7)


def test_the_vocabulary_travels_with_the_facts(tmp_path: Path) -> None:
    task = made(written(tmp_path, a=TEXT), tokenizer={"kind": "bpe", "size": 280})
    facts = task.facts()
    words = vocabulary_of(json.loads(json.dumps(dict(facts.preprocess))))
    assert words.names == facts.class_names
    assert words.decode(labels(task, "train")) == TEXT


def test_prompts_do_not_count_and_the_first_end_does_though_padding_is_the_same_token(tmp_path: Path) -> None:
    lines = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "fgh"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for packing, padding in (("padded", "left"), ("padded", "right"), ("isolated", "right")):
        task = made(str(tmp_path / "a.jsonl"), data="jsonl", packing=packing, padding=padding, context=10)
        batch = next(iter(task.loader("train", batch_size=task.facts().examples, whole=True).batches(0)))
        counts = batch["label"] != -100
        assert sorted(batch["label"][counts].tolist()) == sorted([*b"cdfgh", EOS, EOS])
        assert bytes(batch["input"][counts].tolist()) == b"bcdefgh"
    assert task.facts().preprocess["bytes"] == {"train": 5}


def test_messages_stop_after_every_answer(tmp_path: Path) -> None:
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in talk]}))
    task = made(str(tmp_path / "a.jsonl"), data="jsonl", turn="{role}>{content}|", packing="padded", context=64)
    assert labels(task, "train") == [*b"b|", EOS, *b"d|", EOS]


def test_loss_and_scores_are_of_the_tokens_that_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = made(written(tmp_path, a=TEXT), packing="isolated", documents="paragraphs")
    model = Bigram(257)
    batch = next(iter(task.loader("train", batch_size=3).batches(0)))
    assert {"segment", "position"} <= batch.keys()
    knowledge = task.forward(model, task.batch(batch))
    assert isinstance(knowledge.answer, Hidden)
    each, counts = task.loss(knowledge, batch), batch["label"] != -100
    assert knowledge.mask is not None
    assert torch.equal(knowledge.mask, counts)
    said = knowledge.main.logits.log_softmax(-1)
    expected = [-said[n, t, batch["label"][n, t]] if counts[n, t] else torch.zeros(()) for n in range(3) for t in range(8)]
    assert torch.allclose(each.flatten(), torch.stack(expected))
    scores = task.scores(knowledge, batch)
    assert torch.allclose(scores["loss"].sum(), each.sum())
    assert scores["loss"].shape == scores["accuracy"].shape == (int(counts.sum()),)
    assert task.metric in scores


def test_a_fingerprint_is_of_what_is_learnt_and_not_of_where_it_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, a=TEXT)
    first = made(str(tmp_path / "one")).fingerprint()
    assert first == made(str(tmp_path / "two")).fingerprint()
    others: list[dict[str, Any]] = [{"context": 9}, {"packing": "isolated"}, {"documents": "lines"}, {"test": 0.1}, {"tokenizer": {"kind": "bpe", "size": 300}}]
    found = {made(str(tmp_path / "one"), **how).fingerprint() for how in others}
    (tmp_path / "two" / "a.txt").write_text(TEXT + "more")
    assert len({first, *found, made(str(tmp_path / "two")).fingerprint()}) == 2 + len(others)


def test_wikitext_without_its_training_file_says_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "text-wikitext2"
    folder.mkdir()
    articles = " = A = \n \n a a a \n = B = \n b b b b \n"
    written(folder, test=articles, valid=" = C = \n c \n")
    task = made(str(tmp_path), data="wikitext2", validation=0.4)
    assert task.facts().preprocess["documents"] == {"train": 1, "validation": 1, "test": 1}
    assert "no WikiText-2 result" in task.facts().preprocess["note"]
    assert bytes(labels(task, "test")[:-1]) == b" = C = \n c \n"
    written(folder, train=" = D = \n d \n")
    real = made(str(tmp_path), data="wikitext2")
    assert real.splits() == ("train", "validation", "test")
    assert "note" not in real.facts().preprocess


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"data": "books"}, "no data 'books'"),
        ({"packing": "tight"}, "no packing 'tight'"),
        ({"packing": "stream", "padding": "left"}, "padding is left"),
        ({"context": 0}, "context is 0"),
        ({"root": None}, "needs `root`"),
        ({"validation": 0.6, "test": 0.4}, "together less than 1"),
        ({"validation": -0.1}, "shares of the text"),
        ({"turn": "{content}"}, "turn is"),
        ({"data": "jsonl", "documents": "lines"}, "leave it out"),
        ({"tokenizer": {"kind": "bpe", "size": 10}}, "tokenizer bpe.size"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        made(**{"root": written(tmp_path, a=TEXT), **how})


def test_data_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a file nor a folder"):
        made(str(tmp_path / "nowhere")).facts()
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        made(str(tmp_path)).facts()
    root = written(tmp_path, a="a", b=" \n")
    with pytest.raises(DataError, match=r"b\.txt is an empty document"):
        made(root).facts()
    with pytest.raises(DataError, match=r"input\.txt"):
        made(root, data="tinyshakespeare").facts()
    task = made(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="no validation split"):
        task.loader("validation", batch_size=1)
    with pytest.raises(DataError, match="no batch can be filled"):
        task.loader("train", batch_size=2)
    with pytest.raises(DataError, match=r"test=0\.5 of 1 documents leaves nothing"):
        made(str(tmp_path / "a.txt"), test=0.5).facts()
    with pytest.raises(MismatchError, match="over that vocabulary at least"):
        task.forward(Bigram(256), {"input": torch.zeros(1, 8, dtype=torch.long)})
    with pytest.raises(MismatchError, match=r"up to 256, of a vocabulary of 257, and the model .* build it with vocabulary: 257"):
        task.forward(Bigram(200), {"input": torch.full((1, 8), EOS)})
    for raw in ({"x": torch.zeros(1)}, torch.zeros(1, 8), {"input": torch.zeros(1, 8)}, {"input": torch.zeros(8, dtype=torch.long)}):
        with pytest.raises(MismatchError, match="batch"):
            task.batch(raw)


@pytest.mark.data
def test_the_real_shakespeare_comes_back_to_the_letter() -> None:
    task = Language(data="tinyshakespeare", root=os.environ["LIMBECK_DATA"], tokenizer=Bytes(), context=256)
    folder = Path(os.environ["LIMBECK_DATA"]) / "text-tinyshakespeare"
    parts = [bytes(one for one in labels(task, split) if one != EOS) for split in ("train", "validation", "test")]
    assert b"".join(parts) == (folder / "input.txt").read_bytes()
    assert task.facts().preprocess["bytes"] == {split: len(part) for split, part in zip(("train", "validation", "test"), parts, strict=True)}
