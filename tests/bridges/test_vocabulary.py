"""What tokens spell, byte for byte."""

import pytest

from limbeck.bridges.tokenizers import train_bpe
from limbeck.bridges.vocabulary import Spelling, differ, end_of, spelling
from limbeck.core.errors import MismatchError

TEXTS = ["the cat sat on the mat, the end", "naïve café \u2014 \U0001f600 \t\n  the\x00 end", ""]
BYTES = {"tokenizer": {"kind": "bytes", "roles": ["eos", "mask"]}}


def bpe(size: int = 300, texts: list[str] = TEXTS) -> dict[str, dict[str, object]]:
    return {"tokenizer": {"kind": "tokenizers", "json": train_bpe(texts, size, ["<eos>"]), "roles": {"eos": "<eos>"}}}


@pytest.mark.parametrize("told", [BYTES, bpe()], ids=["bytes", "bpe"])
def test_tokens_spell_their_text(told: dict[str, dict[str, object]]) -> None:
    words = spelling(told)
    for text, ids in zip(TEXTS, words.encode(TEXTS), strict=True):
        assert b"".join(words.bytes[one] or b"" for one in ids) == text.encode()
    assert {bytes([one]) for one in range(256)} <= {*words.bytes}
    assert words.bytes[words.roles["eos"]] is None and end_of(told) == words.roles["eos"]
    assert len({one for one in words.bytes if one}) == sum(one is not None for one in words.bytes), "no two entries spell the same"


def test_vocabularies_that_differ_are_told_apart() -> None:
    assert differ(BYTES, bpe(280)) == "258 tokens of kind bytes and 280 tokens of kind bpe; 258 of the first 258 ids differ, 0 is '0' there and '<eos>' here"
    assert differ(bpe(), bpe()) is None and differ(BYTES, {"kind": "image"}) is None
    assert differ(bpe(), bpe(texts=["other words, other pairs of other letters"])) is not None


def test_tokenizers_that_spell_another_text_are_refused() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    with pytest.raises(MismatchError, match="reads no tokens"):
        spelling({"kind": "image"})
    made = tokenizers.Tokenizer.from_str(bpe()["tokenizer"]["json"])
    made.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(MismatchError, match=r"changes 'The' before it divides it.*aligned by bytes"):
        Spelling({"kind": "tokenizers", "json": made.to_str(), "roles": {"eos": "<eos>"}}).encode(["The"])
    made.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(MismatchError, match="by WordPiece, not byte by byte"):
        Spelling({"kind": "tokenizers", "json": made.to_str(), "roles": {"eos": "<eos>"}})
