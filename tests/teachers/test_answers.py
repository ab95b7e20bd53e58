"""What a black box says becomes a response, or one line that names the row."""

import math
from typing import Any

import numpy as np
import pytest

from limbeck.core.errors import DataError, RecipeError
from limbeck.teachers._answers import responses

P = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum(1, keepdims=True)


@pytest.mark.parametrize("said", [P, P.astype(np.float32), P.tolist(), P * 1.0004])
def test_probabilities_come_back_and_a_zero_becomes_the_floor(said: Any) -> None:
    found = responses(said, "probabilities", count=2, floor=1e-4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(softmax(found), (1 - 3e-4) * P + 1e-4, atol=1e-7)
    np.testing.assert_allclose(found[1], [math.log(1e-4), math.log(1 - 2e-4), math.log(1e-4)], rtol=1e-6)


def test_log_probabilities_are_the_same_answer() -> None:
    with np.errstate(divide="ignore"):
        logs = np.log(P)
    np.testing.assert_allclose(responses(logs, "log_probabilities", count=2), responses(P, "probabilities", count=2), atol=1e-6)


def test_logits_stay_as_they_are() -> None:
    z = np.array([[1.0, -3.0, 700.0]], np.float32)
    np.testing.assert_array_equal(responses(z, "logits", count=1), z)


@pytest.mark.parametrize("said", [[2, 0], [2.0, 0.0], [[2], [0]], np.array([2, 0], np.uint8)])
def test_labels_are_a_distribution_with_their_confidence_on_them(said: Any) -> None:
    found = softmax(responses(said, "labels", count=2, classes=3, confidence=0.9, floor=1e-9))
    np.testing.assert_allclose(found, [[0.05, 0.05, 0.9], [0.9, 0.05, 0.05]], atol=1e-6)


@pytest.mark.parametrize(
    ("said", "answers", "message"),
    [
        (P[:1], "probabilities", "asked about 2 inputs and answers with 1 rows"),
        (np.concatenate([P, P]), "probabilities", "asked about 2 inputs and answers with 4 rows"),
        (0.5, "probabilities", "answers with no rows"),
        ([[0.5, 0.5], [1.0]], "probabilities", "rows of unequal length, or text"),
        ([["a", "b"]] * 2, "probabilities", "rows of unequal length, or text"),
        ({"a": 1}, "probabilities", "a dict that is no table of numbers"),
        ([1, 0], "probabilities", "labels are told by answers: labels"),
        ([[0.5, 0.5], [math.nan, 1]], "probabilities", r"answer to example 8 holds NaN \(1 of 2 rows; the first, which begins nan, 1\)"),
        ([[0.5, 0.5], [0.9, 0.8]], "probabilities", r"example 8 does not sum to 1; is it log_probabilities or logits\? .*which sums to 1.7"),
        ([[0.5, 0.5], [-0.5, 1.5]], "probabilities", "example 8 has a probability below zero"),
        ([[0.5, 0.5], [math.inf, 0]], "probabilities", "example 8 does not sum to 1"),
        ([[-1.0, -2.0], [3.0, 800.0]], "log_probabilities", "example 7 does not sum to 1; is it probabilities or logits"),
        ([[1.0, 2.0], [math.inf, 0]], "logits", "example 8 is not finite"),
        ([1, 3], "labels", "example 8 is no class: labels are 0..2"),
        ([1, 0.5], "labels", "example 8 is no class"),
        ([1, math.nan], "labels", "example 8 is no class"),
        ([[1, 0], [0, 1]], "labels", r"answers with \[2, 2\]; labels are \[2\]"),
    ],
)
def test_what_is_no_answer_is_refused(said: Any, answers: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        responses(said, answers, count=2, classes=3 if answers == "labels" else None, who=lambda row: f"example {7 + row}")


def test_the_classes_must_be_the_task_s() -> None:
    with pytest.raises(DataError, match="knows 3 classes and the task has 4"):
        responses(P, "probabilities", count=2, classes=4)
    with pytest.raises(DataError, match="labels do not say how many classes there are"):
        responses([1, 0], "labels", count=2)
    with pytest.raises(RecipeError, match=r"floor 0.01 for each of 60 classes"):
        responses(np.full((1, 60), 1 / 60), "probabilities", count=1, floor=0.01)
