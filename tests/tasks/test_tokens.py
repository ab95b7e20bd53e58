"""Vocabularies: bytes, byte-pair encoding and a file; what an artifact keeps of them makes them again."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.bridges.tokenizers import train_bpe
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.tasks._tokens import BPE, Bytes, File, as_tokens, vocabulary, vocabulary_of

TEXT = "to be, or not to be: that is the question"


def file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(train_bpe([TEXT], 270, ["</s>", "<s>", "<mask>"]))
    return path


def made(kind: str, folder: Path, roles: Any = ("eos",)) -> Any:
    how = {"bytes": Bytes(), "bpe": BPE(size=270), "file": File(root=str(folder / "tokenizer.json"), eos="</s>")}[kind]
    if kind == "file":
        file(folder)
    return vocabulary(how, [TEXT], roles)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "file"])
def test_text_comes_back_also_from_what_an_artifact_keeps(kind: str, tmp_path: Path) -> None:
    words = made(kind, tmp_path)
    told = json.loads(json.dumps(words.told()))
    again = vocabulary_of({"tokenizer": told})
    assert again.names == words.names
    assert again.roles == words.roles
    assert again.digest == words.digest
    text = "not to be é🙂"
    (ids,) = words.encode([text])
    assert again.encode([text])[0].tolist() == ids.tolist()
    assert again.decode([*ids.tolist(), words.roles["eos"]]) == text
    assert max(ids) < words.size == len(set(words.names))


def test_bytes_are_bytes() -> None:
    words = vocabulary(Bytes(), [], ("pad", "eos"))
    assert words.encode(["aé"])[0].tolist() == [0x61, 0xC3, 0xA9]
    assert words.size == 258
    assert words.roles == {"pad": 256, "eos": 257}
    assert words.decode([0x61, 0xC3]) == "a\ufffd"


def test_special_tokens_of_a_file_stand_for_those_that_are_not_named(tmp_path: Path) -> None:
    path = str(file(tmp_path))
    words = vocabulary(File(root=path, eos="</s>"), [], ("pad", "begin", "eos"))
    assert words.roles == {"pad": 0, "begin": 0, "eos": 0}
    words = vocabulary(File(root=path, eos="</s>", begin="<s>"), [], ("eos",))
    assert words.roles == {"eos": 0, "begin": 1}
    with pytest.raises(RecipeError, match="needs a token for mask"):
        vocabulary(File(root=path, eos="</s>"), [], ("eos", "mask"))
    with pytest.raises(DataError, match=r"no token '<msk>' for mask; did you mean '<mask>'"):
        vocabulary(File(root=path, eos="</s>", mask="<msk>"), [], ("eos", "mask"))


def test_two_vocabularies_have_two_digests(tmp_path: Path) -> None:
    digests = {made(kind, tmp_path).digest for kind in ("bytes", "bpe", "file")}
    assert len({*digests, vocabulary(BPE(size=271), [TEXT], ("eos",)).digest}) == 4


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    assert as_tokens({"kind": "bpe", "size": 300}) == BPE(size=300)
    for told in ({"kind": "bpe", "size": 100}, {"kind": "words"}, {"kind": "file", "root": "x"}, "bpe", {"kind": "bytes", "size": 3}):
        with pytest.raises(RecipeError, match=r"^tokenizer"):
            as_tokens(told)
    with pytest.raises(DataError, match="cannot be read"):
        vocabulary(File(root=str(tmp_path / "nowhere.json"), eos="x"), [], ("eos",))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json is not a tokenizer"):
        vocabulary(File(root=str(tmp_path / "bad.json"), eos="x"), [], ("eos",))
    with pytest.raises(MismatchError, match="reads no tokens"):
        vocabulary_of({"kind": "image"})
