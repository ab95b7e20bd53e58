"""What a corpus is made of: documents, each one text or several pieces of which some are there to be read and not to be learnt."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from limbeck.core.errors import DataError, RecipeError

__all__ = ["Apart", "Document", "Piece", "check_turn", "cut", "divided", "document_of", "read_conversations", "read_text"]

Apart = Literal["files", "headings", "paragraphs", "lines"]
_HEADING = re.compile(r"^(?=[ \t]*=[ \t][^=\n]+[ \t]=[ \t]*$|#[ \t])", re.MULTILINE)
"""` = Title = ` of WikiText, and `# Title`: headings of the first level."""


class Piece(NamedTuple):
    """Some text, and whether a model is to learn it; `ends`: whether it must stop after it.

    `messages`: a whole conversation that the tokenizer's template is to write; the text is then what the assistant says in it.
    """

    text: str
    counts: bool = True
    ends: bool = False
    messages: tuple[Mapping[str, str], ...] | None = None


Document = tuple[Piece, ...]
"""Its pieces, each encoded by itself, so that where one ends a token ends."""


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: it cannot be read, is no UTF-8, or is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path} is an empty document: fill it, or take it away")
    return text


def divided(text: str, apart: Apart) -> list[Document]:
    """Divide a text into documents: `files`, all of it; at headings of the first level; at blank lines; at ends of lines. White space alone is no document."""
    if apart == "headings":
        parts = _HEADING.split(text)
    elif apart == "paragraphs":
        parts = [part.strip("\n") for part in re.split(r"\n[ \t\r]*\n", text)]
    else:
        parts = text.splitlines() if apart == "lines" else [text]
    return [(Piece(part),) for part in parts if part.strip()]


def check_turn(turn: str) -> tuple[str, str, str] | None:
    """Return what a turn is written as around its role and its content: before, between, after; None where the tokenizer's template writes it.

    Raises:
        RecipeError: not one `{role}` and after it one `{content}`.
    """
    if turn == "template":
        return None
    found = re.fullmatch(r"([^{}]*)\{role\}([^{}]*)\{content\}([^{}]*)", turn)
    if not found:
        raise RecipeError(f"turn is {turn!r}; it holds {{role}} once and after it {{content}} once, such as '{{role}}: {{content}}\\n', or is template")
    return found[1], found[2], found[3]


def read_conversations(path: Path, turn: str) -> list[Document]:
    """Read JSON lines: `{"text"}`, `{"prompt", "completion"}`, or `{"messages": [{"role", "content"}, ...]}`.

    A prompt is read and not learnt; of messages the assistant's contents are learnt, and what `turn` puts behind them.

    Raises:
        DataError: a line that is none of these, or has nothing to learn.
    """
    around = check_turn(turn)
    made = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON ({error})") from None
        made.append(_document(told, around, f"{path}, line {number}"))
    return made


def document_of(told: Any, turn: str, where: str) -> Document:
    """Return what `{"text"}`, `{"prompt", "completion"}` or `{"messages"}` says as a document; `where` it stands, for messages.

    Raises:
        DataError: it is none of these, or has nothing to learn.
    """
    return _document(told, check_turn(turn), where)


def _document(told: Any, around: tuple[str, str, str] | None, where: str) -> Document:
    has = told.keys() if isinstance(told, dict) else set[str]()
    if {"prompt", "completion"} <= has:
        return Piece(_text(told["prompt"], where, "prompt"), counts=False), Piece(_text(told["completion"], where, "completion"))
    if "messages" in has:
        return _conversation(told["messages"], around, where)
    if "text" in has:
        return (Piece(_text(told["text"], where, "text")),)
    names = ", ".join(has) if isinstance(told, dict) else type(told).__name__
    raise DataError(f"{where} has {names or 'no fields'}; a line has text, prompt and completion, or messages")


def _conversation(messages: Any, around: tuple[str, str, str] | None, where: str) -> Document:
    before, between, after = around or ("", "", "")
    made: list[Piece] = []
    for message in messages if isinstance(messages, list) else [None]:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: messages are a list of {{role, content}}")
        role, content = message["role"], _text(message["content"], where, "content")
        if role not in ("system", "user", "assistant"):
            raise DataError(f"{where}: a role is system, user or assistant, not {role!r}")
        mine = role == "assistant"
        made += [Piece(f"{before}{role}{between}", counts=False), Piece(content + after, counts=mine, ends=mine)]
    if not any(piece.counts for piece in made):
        raise DataError(f"{where} has no message of the assistant: there is nothing to learn")
    if around is None:
        told = [{"role": one["role"], "content": one["content"]} for one in messages]
        return (Piece("\n".join(piece.text for piece in made if piece.counts), messages=tuple(told)),)
    while not made[-1].counts:
        made.pop()  # nobody answers it
    return *made[:-1], made[-1]._replace(ends=False)  # a document's end is marked anyhow


def _text(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {field} is {'empty' if isinstance(value, str) else type(value).__name__}; it must be text")
    return value


def cut(documents: Sequence[Document], share: float, what: str) -> tuple[list[Document], list[Document]]:
    """Return what is left and `share` of a corpus by characters, from its end: whole documents, and of a single text what follows an end of line.

    Raises:
        DataError: nothing would be left, or nothing taken.
    """
    if len(documents) == 1 and len(documents[0]) == 1 and documents[0][0].messages is None:
        text = documents[0][0].text
        at = text.rfind("\n", 0, round(len(text) * (1 - share))) + 1 or round(len(text) * (1 - share))
        parts = [[(Piece(part),)] if part.strip() else [] for part in (text[:at], text[at:])]
    else:
        sizes = [sum(len(piece.text) for piece in document) for document in documents]
        wanted, taken, first = share * sum(sizes), 0, len(sizes)
        while first and taken + sizes[first - 1] / 2 <= wanted:
            first -= 1
            taken += sizes[first]
        first = max(1, min(first, len(sizes) - 1))  # one on each side at the least
        parts = [list(documents[:first]), list(documents[first:])]
    if not parts[0] or not parts[1]:
        raise DataError(f"{what}={share:g} of {len(documents)} documents leaves nothing on one side: change it, or put a file {what}.txt beside train.txt")
    return parts[0], parts[1]
