"""Byte-pair encoding: the same from the same text, text back from ids, and special tokens that text cannot forge."""

import json
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from limbeck.bridges.tokenizers import Codec, train_bpe
from limbeck.core.errors import DataError, MissingDependency

TEXTS = ["the cat sat on the mat", "the dog sat on the log\n\nthe end", "thé ☃"]


def test_the_same_text_gives_the_same_tokenizer() -> None:
    first = train_bpe(TEXTS, 300, ["<eos>"])
    assert first == train_bpe(iter(TEXTS), 300, ["<eos>"])
    assert first != train_bpe([*TEXTS, "zz zz zz zz"], 300, ["<eos>"])


def test_the_first_merge_is_the_commonest_pair_of_bytes() -> None:
    """Counted naively over the words, each with the space before it."""
    words = ["the", "the", "the", "then", "thin", "at"]
    text = " ".join(words)
    pairs: Counter[tuple[str, str]] = Counter()
    for at, word in enumerate(words):
        letters = (["Ġ"] if at else []) + list(word)
        pairs.update(pairwise(letters))
    merges = json.loads(train_bpe([text], 258, []))["model"]["merges"]
    assert tuple(merges[0]) == pairs.most_common(1)[0][0] == ("t", "h")


def test_ids_begin_with_special_tokens_then_bytes_and_every_text_comes_back() -> None:
    codec = Codec(train_bpe(TEXTS, 280, ["<pad>", "<eos>"]))
    assert codec.names[:2] == ("<pad>", "<eos>") == codec.specials
    assert len(codec.names) == len(set(codec.names)) == 280
    texts = ["the cat", " never seen: Ωμέγα \x00\t\r\n  🙂", "", *TEXTS]
    for text, ids in zip(texts, codec.encode(texts), strict=True):
        assert codec.decode(ids) == text
        assert codec.decode([1, *ids, 1, 0]) == text, "special tokens are no text"
        assert all(0 <= one < 280 for one in ids)


def test_a_special_token_that_stands_in_a_text_is_text() -> None:
    codec = Codec(train_bpe(TEXTS, 280, ["<eos>"]))
    (ids,) = codec.encode(["a<eos>b"])
    assert 0 not in ids
    assert codec.decode(ids) == "a<eos>b"


def test_small_texts_have_fewer_tokens_than_were_asked_for() -> None:
    assert len(Codec(train_bpe(["ab"], 4096, ["<eos>"])).names) == 258


@pytest.mark.parametrize("told", ["", "{}", "[1]", '{"version": "1.0", "model": {"type": "Nothing"}}'])
def test_what_is_no_tokenizer_is_refused_in_one_line(told: str) -> None:
    with pytest.raises(DataError, match=r"^that\.json is not a tokenizer\.json of the library tokenizers: [^\n]+$"):
        Codec(told, "that.json")


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    monkeypatch.setitem(sys.modules, "tokenizers", nothing)
    with pytest.raises(MissingDependency, match=r'pip install "limbeck\[language\]"'):
        train_bpe(TEXTS, 300, [])
