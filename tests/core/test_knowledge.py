"""Knowledge, and what is read of a model."""

import dataclasses

import pytest
import torch

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge, Needs, Reads, TopK


def test_main_and_features_are_found():
    logits, seen = torch.zeros(2, 3), torch.ones(2, 5)
    knowledge = Knowledge({"main": Dense(logits)}, {"0": seen})
    assert knowledge.main.logits is logits
    assert knowledge.main.link == "softmax"
    assert knowledge.feature("0") is seen
    assert knowledge.mask is None


def test_classes_is_the_last_axis():
    assert Dense(torch.zeros(4, 7, 3)).classes == 3


def test_the_likeliest_classes_are_an_answer_and_no_whole_logits():
    answer = TopK(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4), 3.0, 10)
    knowledge = Knowledge({"main": answer})
    assert knowledge.answer is answer
    assert (answer.predictions, answer.classes, answer.link) == ((4,), 10, "softmax")
    with pytest.raises(MismatchError, match=r"whole logits are needed, and the teacher's answer is the 2 likeliest of 10 classes at temperature 3: match"):
        _ = knowledge.main


def test_a_feature_that_was_not_read_is_refused_with_those_that_were():
    with pytest.raises(MismatchError, match=r"no feature was read at 'layer9'; read were: layer1, layer2"):
        Knowledge({}, {"layer1": torch.zeros(1), "layer2": torch.zeros(1)}).feature("layer9")
    with pytest.raises(MismatchError, match="read were: none"):
        Knowledge({}).feature("layer9")


def test_no_main_output_is_refused_with_the_outputs_there_are():
    with pytest.raises(MismatchError, match="no output 'main'; it has: exit1, exit2"):
        _ = Knowledge({"exit1": Dense(torch.zeros(1, 2)), "exit2": Dense(torch.zeros(1, 2))}).main


@pytest.mark.parametrize("record", [Dense(torch.zeros(1, 2)), Knowledge({}), Reads(), Needs()], ids=lambda record: type(record).__name__)
def test_records_are_frozen(record: object):
    field = dataclasses.fields(record)[0].name  # pyright: ignore[reportArgumentType]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, field, None)


def test_features_of_two_records_are_not_one_mapping():
    assert Knowledge({}).features is not Knowledge({}).features


def test_reads_join():
    joined = Reads(features=frozenset({"a"})) | Reads(frozenset({"main", "exit"}), frozenset({"b"}))
    assert joined == Reads(frozenset({"main", "exit"}), frozenset({"a", "b"}))
    assert Reads() | Reads() == Reads()


def test_needs_ask_for_the_main_outputs_and_no_labels():
    assert Needs() == Needs(student=Reads(frozenset({"main"})), teacher=Reads(frozenset({"main"})), labels=False)
    assert Needs(teacher=None).teacher is None
