"""Numbers that follow the epochs."""

import math

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import RecipeError
from limbeck.core.schedule import Clock, Cosine, Decay, Linear, at, check_number

FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("number", [4, 4.0, True])
def test_a_plain_number_stands_still(number: float):
    assert at(number, Clock(3, 10)) == float(number)
    assert type(at(number, Clock())) is float


@pytest.mark.parametrize(("epoch", "value"), [(0, 1.0), (2.5, 2.0), (5, 3.0), (10, 5.0), (12, 5.0)])
def test_linear_over_the_whole_run(epoch: float, value: float):
    assert at(Linear(start=1, end=5), Clock(epoch, 10)) == pytest.approx(value)


@pytest.mark.parametrize(("epoch", "value"), [(0, 4.0), (1, 3.0), (2, 2.0), (4, 0.0), (9, 0.0)])
def test_linear_over_its_own_epochs_then_flat(epoch: float, value: float):
    assert at(Linear(start=4, end=0, epochs=4), Clock(epoch, 10)) == pytest.approx(value)


def test_linear_may_outlast_the_run():
    assert at(Linear(start=0, end=1, epochs=20), Clock(10, 10)) == pytest.approx(0.5)


@pytest.mark.parametrize("epoch", [0, 0.5, 3, 5, 7.25, 10, 11])
def test_cosine_is_half_a_cosine(epoch: float):
    expected = 1 + (3 - 1) * (1 + math.cos(math.pi * min(epoch, 10) / 10)) / 2
    assert at(Cosine(start=3, end=1), Clock(epoch, 10)) == pytest.approx(expected)


def test_cosine_begins_and_ends_flat_and_is_half_way_in_the_middle():
    cosine, step = Cosine(start=1, end=0), 1e-4
    assert at(cosine, Clock(0, 1)) == 1
    assert at(cosine, Clock(0.5, 1)) == pytest.approx(0.5)
    assert at(cosine, Clock(1, 1)) == pytest.approx(0, abs=1e-15)
    assert 1 - at(cosine, Clock(step, 1)) < step / 10
    assert at(cosine, Clock(1 - step, 1)) < step / 10


@pytest.mark.parametrize(("epoch", "value"), [(0, 8.0), (1.99, 8.0), (2, 4.0), (3.5, 4.0), (4, 2.0), (10, 0.25)])
def test_decay_in_whole_steps(epoch: float, value: float):
    assert at(Decay(start=8, factor=0.5, every=2), Clock(epoch, 10)) == pytest.approx(value)


def test_decay_counts_every_step_that_has_passed_though_floats_round():
    decay = Decay(start=1, factor=0.5, every=0.1)
    assert [at(decay, Clock(i / 10, 10)) for i in range(60)] == [pytest.approx(0.5**i) for i in range(60)]


@pytest.mark.parametrize("schedule", [Linear(start=2, end=3), Cosine(start=2, end=3)])
def test_a_run_of_no_epochs_has_a_value(schedule: Linear | Cosine):
    assert 2 <= at(schedule, Clock(0, 0)) <= 3


@settings(deadline=None)
@given(FINITE, FINITE, st.floats(0, 1), st.sampled_from([Linear, Cosine]))
def test_a_ramp_stays_between_its_ends(start: float, end: float, done: float, kind: type[Linear] | type[Cosine]):
    value = at(kind(start=start, end=end), Clock(done * 7, 7))
    slack = 1e-9 * (1 + abs(start) + abs(end))
    assert min(start, end) - slack <= value <= max(start, end) + slack


@pytest.mark.parametrize(
    "number",
    [1, 0.5, Linear(start=1, end=2), Cosine(start=3, end=0.1), Decay(start=1)],
)
def test_good_numbers_pass(number: float | Linear | Cosine | Decay):
    check_number("the temperature", number, positive=True)


@pytest.mark.parametrize("number", [0, Linear(start=0, end=1), Linear(start=1, end=0), Cosine(end=0.0), Decay(start=0)])
def test_zero_passes_only_where_it_may(number: float | Linear | Cosine | Decay):
    check_number("the weight", number, positive=False)
    with pytest.raises(RecipeError, match=r"^the temperature is 0; it must be a finite number above zero$"):
        check_number("the temperature", number, positive=True)


@pytest.mark.parametrize(
    "number", [-1, math.nan, math.inf, -math.inf, Linear(start=-2), Linear(start=1, end=math.nan), Cosine(start=math.inf), Decay(start=-1)]
)
@pytest.mark.parametrize("positive", [True, False])
def test_negative_and_endless_numbers_are_refused(number: float | Linear | Cosine | Decay, positive: bool):
    with pytest.raises(RecipeError, match=r"^the weight is (-|nan|inf).*; it must be a finite number (above zero|of zero or more)$"):
        check_number("the weight", number, positive=positive)


@pytest.mark.parametrize("number", ["4", None, {"kind": "linear"}, [1]])
def test_what_is_no_number_is_named(number: object):
    with pytest.raises(RecipeError, match=r"^the temperature is .*, a \w+; it must be a number, or a schedule") as caught:
        check_number("the temperature", number, positive=True)  # pyright: ignore[reportArgumentType]
    assert repr(number) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Linear, {"strat": 1}),
        (Linear, {"epochs": 0}),
        (Linear, {"epochs": math.inf}),
        (Cosine, {"epochs": -1}),
        (Decay, {"factor": 0}),
        (Decay, {"factor": math.inf}),
        (Decay, {"every": 0}),
        (Decay, {"every": math.nan}),
        (Decay, {"kind": "linear"}),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(kind: type[pydantic.BaseModel], fields: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(fields))):
        kind(**fields)


def test_schedules_are_values():
    assert Linear(start=1, end=2) == Linear(start=1, end=2)
    assert hash(Linear(start=1)) == hash(Linear(start=1)) != hash(Linear(start=2))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Linear().start = 3  # pyright: ignore[reportAttributeAccessIssue]
