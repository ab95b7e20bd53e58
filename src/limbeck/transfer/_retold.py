"""The same text in another tokenizer's tokens, and which bytes each prediction is about.

A text's bytes are counted along a row, special tokens as one each. A prediction is about the token after the one read: it `starts` where that one ended, and
`ends` where its own does; -1 where nothing is predicted.

Shapes: T tokens of a row, U tokens of the same row in the other vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from limbeck.bridges.vocabulary import Spelling
from limbeck.core.errors import DataError, MismatchError

__all__ = ["IGNORED", "Piece", "Row", "retold", "spelt"]

IGNORED = -100


@dataclass
class Piece:
    """Some bytes that the other tokenizer is to read, from `start` on; or a special token, by its role."""

    start: int
    text: str = ""
    role: str = ""


@dataclass
class Row:
    """A row as bytes: where its predictions start and end, which bytes count, and the pieces of each stretch."""

    starts: list[int]
    ends: list[int]
    counts: list[bool] = field(default_factory=list)
    stretches: list[list[Piece]] = field(default_factory=list)


def spelt(tokens: Sequence[int], labels: Sequence[int], segments: Sequence[int] | None, words: Spelling, who: str) -> Row:
    """Spell a row `[T]`; what follows its last label that counts is left out, where no segment says what is padding.

    Raises:
        MismatchError: a token that spells nothing and has no role.
        DataError: bytes within a row that are no UTF-8.
    """
    roles = {one: role for role, one in reversed([*words.roles.items()])}
    row = Row([-1] * len(tokens), [-1] * len(tokens))
    for first, stop in _stretches(labels, segments):
        read = [*tokens[first:stop], *([labels[stop - 1]] if labels[stop - 1] != IGNORED else [])]
        ends: list[int] = []
        found: list[tuple[int, bytes | str]] = []
        for place, token in enumerate(read):
            spells = words.bytes[token]
            if spells is None and token not in roles:
                raise MismatchError(f"token {token} of {who} spells nothing and is told no role: there is no such token in another vocabulary")
            size = 1 if spells is None else len(spells)
            found.append((len(row.counts), roles[token] if spells is None else spells))
            row.counts += [place > 0 and labels[first + place - 1] != IGNORED] * size
            ends.append(len(row.counts))
        for place in range(len(read) - 1):
            row.starts[first + place], row.ends[first + place] = ends[place], ends[place + 1]
        row.stretches.append(_pieces(found, who))
    return row


def _stretches(labels: Sequence[int], segments: Sequence[int] | None) -> list[tuple[int, int]]:
    if segments is None:
        last = max((place + 1 for place, one in enumerate(labels) if one != IGNORED), default=0)
        return [(0, last)] if last else []
    cuts = [place for place in range(len(segments)) if place == 0 or segments[place] != segments[place - 1]]
    return [(first, stop) for first, stop in zip(cuts, [*cuts[1:], len(segments)], strict=True) if segments[first]]


def _pieces(found: Sequence[tuple[int, bytes | str]], who: str) -> list[Piece]:
    """Bytes brought together between special tokens; of a character that a row's edge cuts, nothing is told."""
    made: list[Piece] = []
    start, held = 0, b""
    for at, spells in (*found, (-1, "")):
        if isinstance(spells, bytes):
            start, held = start if held else at, held + spells
            continue
        if held:
            cut = 0 if made else next((place for place, byte in enumerate(held) if byte & 0xC0 != 0x80), len(held))
            text = held[cut:]
            if not spells:
                text = text[: _whole(text)]
            try:
                made.append(Piece(start + cut, text.decode()))
            except UnicodeDecodeError:
                raise DataError(f"the text of {who} is no UTF-8 in its middle: no other tokenizer can read it") from None
            held = b""
        if spells:
            made.append(Piece(at, role=spells))
    return [one for one in made if one.text or one.role]


def _whole(text: bytes) -> int:
    """How many bytes of a text are whole characters, where its end cuts the last one."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(text) if back >= size else len(text) - back
    return len(text)


def retold(row: Row, encoded: Sequence[Sequence[Sequence[int]]], words: Spelling, who: str) -> dict[str, list[int]]:
    """Return the row in the other vocabulary `[U]`: `input`, `label`, `starts`, `ends`, `segment` from 1 and `position`; a label counts where all its bytes do.

    `encoded`: of each stretch the ids of each of its pieces; a special token's are empty.

    Raises:
        MismatchError: a special token that the other vocabulary has not.
    """
    made: dict[str, list[int]] = {name: [] for name in ("input", "label", "starts", "ends", "segment", "position")}
    for number, (pieces, ids) in enumerate(zip(row.stretches, encoded, strict=True), 1):
        tokens: list[tuple[int, int]] = []
        for piece, own in zip(pieces, ids, strict=True):
            end = piece.start
            if piece.role:
                role = piece.role if piece.role in words.roles else "eos"
                if role not in words.roles:
                    raise MismatchError(f"{who} has a token for {piece.role}, and the other vocabulary has none")
                tokens.append((words.roles[role], end + 1))
            for one in own:
                end += len(words.bytes[one] or b"")
                tokens.append((one, end))
        for place, ((token, start), (after, end)) in enumerate(pairwise(tokens)):
            made["input"].append(token)
            made["label"].append(after if all(row.counts[start:end]) else IGNORED)
            made["starts"].append(start)
            made["ends"].append(end)
            made["segment"].append(number)
            made["position"].append(place)
    return made
