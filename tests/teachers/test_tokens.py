"""Which tokens count, where they stand, and what tells that a token was seen in other company."""

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge
from limbeck.teachers._tokens import by_token, counting, flattened, otherwise, seen, spread, where


def batch(**fields: Tensor) -> dict[str, Tensor]:
    x = torch.tensor([[5, 6, 7, 8, 9, 0], [5, 6, 1, 5, 6, 7]])
    return {"input": x, "label": torch.where(x > 0, x, -100), **fields}


PLACED = {
    "document": torch.tensor([[3, 3, 3, 3, 3, -1], [4, 4, 4, 7, 7, 7]]),
    "place": torch.tensor([[0, 1, 2, 3, 4, -1], [0, 1, 2, 0, 1, 2]]),
    "segment": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 2, 2, 2]]),
}


def test_what_is_answered_token_by_token() -> None:
    assert by_token(batch())
    assert by_token({"input": batch()["input"], "document": PLACED["document"]})
    assert not by_token({"input": torch.zeros(2, 3), "label": torch.zeros(2, 3)})
    assert not by_token({"input": torch.zeros(2, 6, dtype=torch.long), "label": torch.zeros(2, dtype=torch.long)})


def test_padding_and_prompts_do_not_count_and_places_are_by_document_or_by_row() -> None:
    given = batch(**PLACED)
    given["label"][1, 0] = -100
    chosen = counting(given)
    assert chosen.tolist() == [[True] * 5 + [False], [False] + [True] * 5]
    found = where(given, chosen, 1)
    assert found.documents.tolist() == [3] * 5 + [4, 4, 7, 7, 7]
    assert found.places.tolist() == [0, 1, 2, 3, 4, 1, 2, 0, 1, 2]
    rows = where(batch(id=torch.tensor([11, 12]), view=torch.tensor([1, 1])), chosen, 2)
    assert rows.documents.tolist() == [11] * 5 + [12] * 5
    assert rows.places.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]
    assert set(rows.views.tolist()) == {1}
    with pytest.raises(MismatchError, match="found by document and place, and the batch has neither"):
        where(batch(), chosen, 1)
    with pytest.raises(MismatchError, match="2 views of each token are recorded, and the batch does not say which"):
        where(given, chosen, 2)


def test_a_witness_is_of_the_tokens_before_in_the_same_segment() -> None:
    given = batch(**PLACED)
    told = seen(given["input"], given)
    assert told[1, 3] == told[0, 0] and told[1, 4] == told[0, 1] and told[1, 5] == told[0, 2], "5 6 7, whatever row they are in"
    assert told[1, 0] == told[0, 0] and told[1, 1] == told[0, 1] and told[1, 2] != told[0, 2]
    stream = {name: value for name, value in given.items() if name != "segment"}
    across = seen(stream["input"], stream)
    assert torch.equal(across[1, :3], told[1, :3]) and not (across[1, 3:] == told[1, 3:]).any(), "what stands before it in the row is seen"
    moved = given["input"].clone()
    moved[0, 1] = 66
    other = seen(moved, given)
    assert (other[0, 1:5] != told[0, 1:5]).all() and other[0, 0] == told[0, 0] and torch.equal(other[1], told[1])
    assert (told >= 0).all() and (told < 2**32).all()


def test_a_witness_of_a_row_that_is_a_document_is_of_the_whole_row() -> None:
    given = batch(id=torch.tensor([0, 1]))
    told = seen(given["input"], given)
    assert (told == told[:, :1]).all() and told[0, 0] != told[1, 0]
    swapped = given["input"].clone()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    assert seen(swapped, given)[0, 0] != told[0, 0]


def test_answers_go_into_a_row_and_back_to_their_places() -> None:
    chosen = counting(batch(**PLACED))
    said = Knowledge({"main": Hidden(torch.randn(2, 6, 4), torch.randn(9, 4)), "exit": Dense(torch.randn(2, 6, 9))}, {"norm": torch.randn(2, 6, 4)})
    few = flattened(said, chosen)
    assert few.answer.predictions == (11,)
    back = spread(few, chosen)
    assert isinstance(back.answer, Hidden) and isinstance(said.answer, Hidden)
    assert torch.equal(back.answer.states[chosen], said.answer.states[chosen])
    assert torch.equal(back.feature("norm")[chosen], said.feature("norm")[chosen])
    assert back.mask is chosen
    assert not back.feature("norm")[~chosen].any()
    with pytest.raises(MismatchError, match=r"layer 'softmax' gives \[2, 4, 6, 6\] for \[2, 6\] tokens"):
        flattened(Knowledge(said.outputs, {"softmax": torch.zeros(2, 4, 6, 6)}), chosen)
    with pytest.raises(MismatchError, match=r"output 'main' is of \[2\] predictions"):
        flattened(Knowledge({"main": Dense(torch.zeros(2, 9))}), chosen)


def test_what_differs_is_named_on_both_sides() -> None:
    then = {"corpus": "a" * 64, "tokenizer": "b" * 64, "context": 32}
    assert otherwise(then, dict(then)) is None
    assert otherwise(then, {**then, "context": 64}) == "it was recorded of context 32, and context 64 is asked for"
    told = otherwise(then, {**then, "context": 64, "tokenizer": "c" * 64})
    assert told == f"it was recorded of tokenizer {'b' * 12}, and tokenizer {'c' * 12} is asked for", "what matters most comes first"
