"""Lag: every sequence is what its definition says, and half of them begin with each symbol."""

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import DataError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.tasks.lag import Lag


def every(task: Lag, split: Any, **how: Any) -> dict[str, Tensor]:
    found = list(task.loader(split, batch_size=7, whole=True, **how).batches(0))
    return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}


def test_a_sequence_is_its_first_symbol_then_all_the_b_s_and_the_answer_is_the_first() -> None:
    task = Lag(lag=5, examples=20, validation=4, test=6)
    names = task.facts().class_names
    assert names == ("a", "x", "b1", "b2", "b3", "b4", "b5")
    assert task.facts().in_shape == (6, 7) and task.facts().examples == 20
    found = every(task, "train")
    assert found["input"].shape == (20, 6, 7) and found["input"].dtype == torch.float32
    assert found["input"].sum(2).eq(1).all()
    for one, label in zip(found["input"].argmax(2).tolist(), found["label"].tolist(), strict=True):
        first, *rest = (names[symbol] for symbol in one)
        assert rest == ["b1", "b2", "b3", "b4", "b5"]
        assert names[label] == first in ("a", "x")


def test_each_split_has_its_own_ids_and_as_many_of_each_sequence() -> None:
    task = Lag(lag=2, examples=20, validation=4, test=6)
    assert task.splits() == ("train", "validation", "test")
    ids = [every(task, split)["id"].tolist() for split in task.splits()]
    assert ids == [list(range(20)), list(range(20, 24)), list(range(24, 30))]
    assert [every(task, split)["label"].float().mean().item() for split in task.splits()] == [0.5] * 3


def test_the_draw_is_a_function_of_seed_and_id() -> None:
    long, short, other = (every(Lag(lag=3, examples=n, seed=s), "train")["label"] for n, s in ((64, 4), (32, 4), (64, 5)))
    assert long[:32].equal(short)
    assert not long.equal(other)
    fingerprints = {Lag(lag=n, examples=m, seed=s).fingerprint() for n, m, s in ((3, 4, 0), (4, 4, 0), (3, 6, 0), (3, 4, 1))}
    assert len(fingerprints) == 4
    assert Lag(lag=3).fingerprint() == Lag(lag=3).fingerprint()


def test_it_is_scored_by_the_answer_at_the_end() -> None:
    task = Lag(lag=2, examples=4)
    batch = next(iter(task.loader("train", batch_size=4).batches(0)))
    said = Knowledge({"main": Dense(torch.tensor([[0.0, 1.0, -1.0, -1.0]]).expand(4, -1))})  # always x
    assert task.scores(said, batch)["accuracy"].tolist() == batch["label"].tolist()
    assert task.loss(said, batch).shape == (4,)


@pytest.mark.parametrize(("how", "message"), [({"lag": 0}, "lag is 0"), ({"examples": 0}, "examples is 0"), ({"validation": -1}, "validation is -1"),
                                              ({"test": 0}, "test is 0"), ({"seed": -1}, "seed is -1")])  # fmt: skip
def test_options_that_cannot_be_meant(how: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Lag(**how)


def test_no_validation_is_no_split() -> None:
    task = Lag(lag=1, validation=0)
    assert task.splits() == ("train", "test")
    with pytest.raises(DataError, match="no validation split"):
        task.loader("validation", batch_size=4)
