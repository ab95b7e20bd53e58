"""Texts into documents, conversations into what is read and what is learnt, and shares cut off without a leak."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks._text_documents import Piece, check_turn, cut, divided, read_conversations, read_text

TURN = "{role}: {content}\n"


def texts(documents: list[Any]) -> list[str]:
    return [piece.text for document in documents for piece in document]


def test_where_a_text_is_divided() -> None:
    text = " = One = \n\na\n\n = = Part = = \nb\n \n = Two = \nc = d = e\n# Three\nf\n"
    assert texts(divided(text, "files")) == [text]
    assert texts(divided(text, "headings")) == [" = One = \n\na\n\n = = Part = = \nb\n \n", " = Two = \nc = d = e\n", "# Three\nf\n"]
    assert texts(divided("a\n\n\n b\nc\n \t\n\nd", "paragraphs")) == ["a", " b\nc", "d"]
    assert texts(divided("a\n\n b \n", "lines")) == ["a", " b "]
    assert "".join(texts(divided(text, "headings"))) == text


def test_prompts_are_read_and_completions_learnt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"prompt": "2+2=", "completion": "4"},
        {"text": "all of it"},
        {"messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
            {"role": "user", "content": "bye"}, {"role": "assistant", "content": "{bye}"}, {"role": "user", "content": "?"},
        ]},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second, third = read_conversations(path, TURN)
    assert first == (Piece("2+2=", counts=False), Piece("4"))
    assert second == (Piece("all of it"),)
    assert "".join(piece.text for piece in third) == "system: be brief\nuser: hi\nassistant: ho\nuser: bye\nassistant: {bye}\n"
    assert [piece.text for piece in third if piece.counts] == ["ho\n", "{bye}\n"]
    assert [piece.ends for piece in third if piece.counts] == [True, False], "the last one ends with the document"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "has list"),
        ("{}", "has no fields"),
        ('{"prompt": "a"}', "has prompt"),
        ('{"prompt": "a", "completion": ""}', "completion is empty"),
        ('{"text": 3}', "text is int"),
        ('{"messages": []}', "no message of the assistant"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message of the assistant"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "not 'bot'"),
        ('{"messages": "a"}', "a list of"),
    ],
)
def test_a_line_that_says_nothing_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=message):
        read_conversations(path, TURN)


@pytest.mark.parametrize("turn", ["", "{content}", "{content} {role}", "{role}{role}{content}", "{role} {content} {name}"])
def test_a_turn_holds_its_role_and_its_content(turn: str) -> None:
    with pytest.raises(RecipeError, match="turn is"):
        check_turn(turn)
    assert check_turn("<{role}>{content}</>") == ("<", ">", "</>")


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    bad = {"empty": (b" \n", "empty document"), "latin": ("é".encode("latin-1"), r"not UTF-8 \(byte 0\)"), "cut": ("é".encode()[:1], "not UTF-8")}
    for name, (data, message) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_text(tmp_path / name)
    with pytest.raises(DataError, match="cannot read"):
        read_text(tmp_path / "nowhere")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "marked") == "a\r\nb"


def test_a_share_is_cut_off_the_end() -> None:
    lines = "".join(f"line {number}\n" for number in range(10))
    rest, taken = cut([(Piece(lines),)], 0.25, "test")
    assert texts(rest) + texts(taken) == [lines[: 7 * 7], lines[7 * 7 :]]
    documents: list[Any] = [(Piece("x" * 10),) for _ in range(10)]
    rest, taken = cut(documents, 0.3, "test")
    assert (len(rest), len(taken)) == (7, 3)
    assert [len(part) for part in cut(documents, 0.01, "test")] == [9, 1]
    assert [len(part) for part in cut(documents, 0.99, "test")] == [1, 9]


@pytest.mark.parametrize("documents", [[(Piece("a"),)], [(Piece("a"), Piece("b"))], []])
def test_too_little_to_cut_is_refused(documents: Any) -> None:
    with pytest.raises(DataError, match=r"validation=0\.5 of \d documents leaves nothing on one side"):
        cut(documents, 0.5, "validation")
