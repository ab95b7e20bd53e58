"""What a way of keeping answers errs by is what a naive sum says, and a wish is granted or refused by the figures."""

import math

import pytest
import torch

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge
from limbeck.teachers._budget import Measured, candidates, error_of, measured, picked
from limbeck.teachers._keep import Auto, HiddenStates, Likeliest, Samples, WholeLogits
from limbeck.teachers._store_columns import Recording


def answer(count: int = 30, classes: int = 12) -> Hidden:
    torch.manual_seed(0)
    return Hidden(2 * torch.randn(count, 6), torch.randn(classes, 6), torch.randn(classes), scale=0.7, softcap=9.0)


def ask(keep: WholeLogits | Likeliest | HiddenStates | Samples) -> Measured:
    return measured(Knowledge({"main": answer()}), keep, Recording(), torch.arange(30), 300, 600.0, 1.0)


def test_the_error_of_the_likeliest_classes_is_that_of_spreading_the_rest() -> None:
    k, temperature = 4, 1.7
    found = ask(Likeliest(k=k, temperature=temperature))
    p = (answer().logits.double() / temperature).softmax(-1)
    total = 0.0
    for row in p.tolist():
        kept = sorted(row, reverse=True)[:k]
        for value in row:
            total += value * (0.0 if value in kept else math.log(value / ((1 - sum(kept)) / (12 - k))))
    assert found.nats == pytest.approx(total / 30, rel=2e-3)  # float16
    assert found.bytes == pytest.approx(k * 4 + 2 + 0.25 + 2)


def test_states_err_by_their_rounding_and_float32_by_nothing() -> None:
    exact, half, eighth = (ask(HiddenStates(dtype=dtype)) for dtype in ("float32", "bfloat16", "int8"))
    assert exact.nats == 0 < half.nats < 1e-3 and 0 < eighth.nats < 1e-3
    head = (12 * 6 + 12) * 4 / 300
    assert [one.bytes for one in (exact, half, eighth)] == pytest.approx([24 + 2.25 + head, 12 + 2.25 + head, 6 + 4 + 2.25 + head])
    rounded = answer().states.bfloat16().float()
    p, q = (Hidden(states, answer().weight, answer().bias, 0.7, 9.0).logits.double().log_softmax(-1) for states in (answer().states, rounded))
    assert half.nats == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-6)


def test_the_noise_of_draws_falls_as_there_are_more() -> None:
    few, many = (ask(Samples(count=count)) for count in (2, 8))
    assert few.nats > many.nats > 0
    assert error_of(answer(), Dense(answer().logits), 1.0) == 0


def test_a_teacher_without_states_is_kept_whole_or_in_part() -> None:
    kinds = {one.kind for one in candidates(Dense(torch.zeros(1, 9)), 1.0)}
    assert kinds == {"dense", "topk"}
    assert [one.k for one in candidates(answer(), 1.0) if isinstance(one, Likeliest)] == [1, 2, 4, 8]


def test_a_wish_takes_the_least_error_within_the_bytes_or_the_fewest_bytes_within_the_error() -> None:
    table = [Measured(HiddenStates(dtype="float32"), 100, 0.0), Measured(HiddenStates(), 50, 0.01), Measured(Likeliest(k=8, temperature=1), 40, 0.2)]
    assert picked(table, Auto(bytes=99)).keep == HiddenStates()
    assert picked(table, Auto(bytes=49)).keep == Likeliest(k=8, temperature=1)
    assert picked(table, Auto(nats=0.3)).bytes == 40
    assert picked(table, Auto(nats=0.0)).bytes == 100
    with pytest.raises(RecipeError, match=r"keep.bytes is 39, and nothing is kept in so few; the closest is topk 8: 40 bytes a token, 0.2 nats"):
        picked(table, Auto(bytes=39))
    with pytest.raises(RecipeError, match=r"keep.nats is 0.001, and nothing errs by so little; the closest is hidden bfloat16: 50 bytes"):
        picked(table[1:], Auto(nats=0.001))
    for wrong in ({}, {"bytes": 3.0, "nats": 0.1}):
        with pytest.raises(ValueError, match="one of bytes and nats"):
            Auto(**wrong)
