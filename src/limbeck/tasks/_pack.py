"""From token sequences to rows of one length: cut, packed or padded, every token a label once at the most.

A sequence is `tokens [L]`, a begin and an end among them, and `counts [L]`, which of them are to be learnt; it asks for L - 1 predictions, of all but the
first. The row's label is the token that follows: the shift is done here.

Shapes: M rows, T their length.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["IGNORED", "Packing", "Rows", "Sequenced", "framed", "packed"]

IGNORED = -100
"""The label of a position that does not count, whatever its token is."""
Packing = Literal["stream", "isolated", "padded"]
Array = npt.NDArray[np.int32]


class Sequenced(NamedTuple):
    """`tokens [L]` and which of them count, `[L]`."""

    tokens: Array
    counts: npt.NDArray[np.bool_]


class Rows(NamedTuple):
    """`input` and `label [M, T]`, int32; `segment [M, T]`, the document's number in its row from 1, 0 for padding, and `position [M, T]` in its piece there.

    These two are None where a row is one stretch of text from its first position on. `document` and `place [M, T]`: which document a token is of, and where in
    the whole of it, -1 for padding; they are for finding a token again, whatever row it is in, and no model is told.
    """

    input: Tensor
    label: Tensor
    segment: Tensor | None
    position: Tensor | None
    document: Tensor
    place: Tensor


def packed(sequences: Sequence[Sequenced], context: int, packing: Packing, pad: int, side: Literal["left", "right"] = "right", first: int = 0) -> Rows:
    """Lay sequences out in rows; `first` is the number of the first one.

    - `stream`: all of them in one line, cut every `context` tokens; what follows a document's end is the next one, which attention sees across.
    - `isolated`: whole documents side by side, best fit first, each a segment of its own with positions from 0; a longer one is cut into several.
    - `padded`: one document to a row, a longer one cut into several, padding on one side; on the left it is segment 0, on the right nothing sees it.

    A piece in which nothing counts is left out.
    """
    placed = [
        _Placed(one, np.full(len(one.tokens), number, np.int32), np.arange(len(one.tokens), dtype=np.int32)) for number, one in enumerate(sequences, first)
    ]
    if packing == "stream":
        placed = [_line(placed)]
    pieces = [piece for one in placed for piece in _pieces(one, context)]
    rows = _best_fit([len(piece[0]) for piece in pieces], context) if packing == "isolated" else [[at] for at in range(len(pieces))]
    made = np.zeros((6, len(rows), context), np.int32)
    tokens, labels, segments, positions, documents, places = made
    tokens[:], labels[:], documents[:], places[:] = pad, IGNORED, -1, -1
    for row, held in enumerate(rows):
        start = context - len(pieces[held[0]][0]) if packing == "padded" and side == "left" else 0
        for number, piece in enumerate((pieces[at] for at in held), 1):
            where = slice(start, start + len(piece[0]))
            tokens[row, where], labels[row, where], documents[row, where], places[row, where] = piece
            segments[row, where], positions[row, where] = number, np.arange(len(piece[0]))
            start = where.stop
    apart = packing == "isolated" or (packing == "padded" and side == "left")
    found = [torch.from_numpy(each) for each in made]
    return Rows(found[0], found[1], found[2] if apart else None, found[3] if apart else None, found[4], found[5])


class _Placed(NamedTuple):
    """A sequence, and of each of its tokens the document and the place in it, `[L]`."""

    one: Sequenced
    document: Array
    place: Array


def _line(placed: Sequence[_Placed]) -> _Placed:
    """All sequences as one; an end that is the same token as the next beginning is both."""
    shared = [0, *(int(one.one.tokens[-1] == after.one.tokens[0]) for one, after in pairwise(placed))]
    tokens, counts, documents, places = zip(
        *((each.one.tokens[skip:], each.one.counts[skip:], each.document[skip:], each.place[skip:]) for each, skip in zip(placed, shared, strict=True)),
        strict=True,
    )
    return _Placed(Sequenced(np.concatenate(tokens), np.concatenate(counts)), np.concatenate(documents), np.concatenate(places))


def _pieces(placed: _Placed, context: int) -> list[tuple[Array, Array, Array, Array]]:
    """Inputs, labels, documents and places of a sequence, `context` at a time, where something counts."""
    one = placed.one
    labels = np.where(one.counts[1:], one.tokens[1:], np.int32(IGNORED))
    starts = range(0, len(labels), context)
    cuts = [slice(at, min(at + context, len(labels))) for at in starts]
    return [(one.tokens[cut], labels[cut], placed.document[cut], placed.place[cut]) for cut in cuts if (labels[cut] != IGNORED).any()]


def _best_fit(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Return which pieces go into each row: the longest first, into the row with the least room that holds it; within a row, and of rows, in their order."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(context + 1)]
    for at in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        room = next((room for room in range(lengths[at], context + 1) if with_room[room]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, context
        else:
            row = with_room[room].pop()
        rows[row].append(at)
        with_room[room - lengths[at]].append(row)
    return sorted(sorted(row) for row in rows)


def framed(pieces: Sequence[Array], context: int, *, begin: int, eos: int, pad: int) -> dict[str, Tensor]:
    """Return pieces of `context - 2` tokens at most as rows, each between a begin and an end: `input [M, T]` int32, padded on the right; `attention`."""
    tokens = np.full((len(pieces), context), pad, np.int32)
    lengths = np.array([len(piece) + 2 for piece in pieces], np.int32)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece) + 2] = [begin, *piece, eos]
    attention = torch.arange(context) < torch.from_numpy(lengths)[:, None]
    return {"input": torch.from_numpy(tokens), "attention": attention}
