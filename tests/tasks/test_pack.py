"""Rows of tokens: every token is predicted once, from what stands before it in its own document."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.tasks._pack import IGNORED, Rows, Sequenced, framed, packed

END, PAD = 90, 91
WAYS: list[tuple[Any, Any]] = [("stream", "right"), ("isolated", "right"), ("padded", "right"), ("padded", "left")]
every = pytest.mark.parametrize(("packing", "side"), WAYS)


def sequences(lengths: list[int], unlearnt: int = 0) -> list[Sequenced]:
    """Documents of tokens that tell document and place, the first ones of each not to be learnt."""
    made = []
    for number, length in enumerate(lengths):
        tokens = np.array([END, *(100 * (number + 1) + place for place in range(length)), END], np.int32)
        counts = np.array([False, *(place >= unlearnt for place in range(length)), True])
        made.append(Sequenced(tokens, counts))
    return made


def labels(rows: Rows) -> Counter[int]:
    return Counter(rows.label[rows.label != IGNORED].tolist())


@every
@pytest.mark.parametrize("context", [1, 3, 4, 7, 50])
def test_every_token_and_every_end_is_a_label_once(packing: Any, side: Any, context: int) -> None:
    given = sequences([5, 1, 9, 3, 3])
    rows = packed(given, context, packing, END, side)
    assert rows.input.shape == rows.label.shape == (len(rows.input), context)
    expected = Counter(token for one in given for token in one.tokens[1:].tolist())
    assert expected[END] == 5
    assert labels(rows) == expected, "the end counts, though padding is the same token"


@every
def test_a_label_is_the_token_after_and_its_document_is_the_one_before(packing: Any, side: Any) -> None:
    lengths = [5, 1, 9, 3, 3]
    rows = packed(sequences(lengths), 6, packing, PAD, side)
    last = {100 * (number + 1) + length - 1 for number, length in enumerate(lengths)}
    for read, wanted in zip(rows.input.flatten().tolist(), rows.label.flatten().tolist(), strict=True):
        if wanted == END:
            assert read in last
        elif wanted != IGNORED:
            assert read == (END if wanted % 100 == 0 else wanted - 1)


def test_a_stream_runs_on_and_only_its_last_row_is_padded() -> None:
    rows = packed(sequences([5, 1, 9]), 4, "stream", PAD)
    line = [END, 100, 101, 102, 103, 104, END, 200, END, 300, 301, 302, 303, 304, 305, 306, 307, 308]
    assert rows.input.flatten().tolist() == [*line, PAD, PAD]
    assert rows.label.flatten().tolist() == [*line[1:], END, IGNORED, IGNORED]
    assert rows.segment is None
    assert rows.position is None


def test_a_beginning_of_its_own_is_kept_and_not_predicted() -> None:
    begun = [Sequenced(np.array([7, 1, END], np.int32), np.array([False, True, True])) for _ in range(2)]
    rows = packed(begun, 5, "stream", PAD)
    assert rows.input.tolist() == [[7, 1, END, 7, 1]]
    assert rows.label.tolist() == [[1, END, IGNORED, 1, END]]


def test_isolated_documents_have_numbers_and_positions_of_their_own() -> None:
    rows = packed(sequences([5, 1, 9, 3, 3]), 8, "isolated", PAD)
    assert rows.segment is not None
    assert rows.position is not None
    for tokens, wanted, segment, position in zip(rows.input, rows.label, rows.segment, rows.position, strict=True):
        assert ((segment == 0) == (tokens == PAD)).all()
        assert (wanted[segment == 0] == IGNORED).all()
        for number in range(1, int(segment.max()) + 1):
            inside = segment == number
            assert position[inside].tolist() == list(range(int(inside.sum())))
            documents = {int(token) // 100 for token in tokens[inside] if token >= 100}
            assert len(documents) == 1
    used = int((rows.segment > 0).sum())
    assert len(rows.input) == -(-used // 8), "best fit first needs no row more than it must, here"


def test_padding_on_the_left_ends_every_row_with_text() -> None:
    right, left = (packed(sequences([5, 1, 9]), 6, "padded", PAD, side) for side in ("right", "left"))
    assert left.segment is not None
    assert left.position is not None
    assert right.segment is None
    for row in range(len(left.input)):
        inside = left.segment[row] == 1
        assert inside[-1]
        assert left.input[row][inside].tolist() == right.input[row][: int(inside.sum())].tolist()
        assert left.label[row][inside].tolist() == right.label[row][: int(inside.sum())].tolist()
        assert left.position[row][inside].tolist() == list(range(int(inside.sum())))


@every
def test_what_is_not_learnt_is_no_label_and_rows_without_any_are_left_out(packing: Any, side: Any) -> None:
    rows = packed(sequences([8, 8], unlearnt=6), 3, packing, PAD, side)
    assert labels(rows) == Counter({106: 1, 107: 1, 206: 1, 207: 1, END: 2})
    assert (rows.label != IGNORED).any(1).all()


def test_framed_pieces_stand_between_begin_and_end() -> None:
    fields = framed([np.array([5, 6], np.int32), np.array([7, 8, 9], np.int32)], 5, begin=1, eos=2, pad=0)
    assert fields["input"].tolist() == [[1, 5, 6, 2, 0], [1, 7, 8, 9, 2]]
    assert torch.equal(fields["attention"], fields["input"] != 0)


@every
@pytest.mark.parametrize("context", [3, 7, 50])
def test_a_token_tells_its_document_and_its_place_in_whatever_row(packing: Any, side: Any, context: int) -> None:
    given = sequences([5, 1, 9, 3, 3], unlearnt=1)
    rows = packed(given, context, packing, PAD, side, first=40)
    inside = rows.document >= 0
    assert torch.equal(inside, rows.place >= 0)
    assert torch.equal(inside, rows.input != PAD)
    for token, wanted, document, place in zip(rows.input[inside], rows.label[inside], rows.document[inside], rows.place[inside], strict=True):
        own = given[int(document) - 40].tokens
        assert own[place] == token
        if wanted != IGNORED and place + 1 < len(own):
            assert own[place + 1] == wanted
    pairs = list(zip(rows.document[inside].tolist(), rows.place[inside].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "no token is there twice"
