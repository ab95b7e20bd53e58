"""Figures of a whole split against scikit-learn's, where a class never occurs, and where a number never varies."""

import numpy as np
import pytest

from limbeck.core.errors import MismatchError
from limbeck.measure.answers import numbers, yes_or_no

metrics = pytest.importorskip("sklearn.metrics")
MADE = np.random.default_rng(0)
LOGITS, LABELS = np.round(MADE.normal(size=(30, 5)) * 3) / 2, MADE.integers(0, 2, (30, 5))  # with ties


def test_yes_or_no_is_scikit_learn_s() -> None:
    found, said = yes_or_no(LOGITS, LABELS), LOGITS > 0
    assert found["mean_average_precision"] == pytest.approx(metrics.average_precision_score(LABELS, LOGITS, average="macro"), rel=1e-12)
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(LABELS, said, average="micro"), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(LABELS, said, average="macro"), rel=1e-12)


def test_a_class_without_a_positive_has_no_average_precision() -> None:
    labels = LABELS.copy()
    labels[:, 2] = 0
    there = [0, 1, 3, 4]
    assert yes_or_no(LOGITS, labels)["mean_average_precision"] == yes_or_no(LOGITS[:, there], labels[:, there])["mean_average_precision"]
    assert yes_or_no(LOGITS - 99, labels * 0) == {"micro_f1": 0.0, "macro_f1": 0.0}
    assert yes_or_no(LOGITS, labels / 2) == {}


def test_numbers_are_scikit_learn_s() -> None:
    said, true = MADE.normal(size=(2, 20, 3))
    found = numbers(said, true)
    assert found["rmse"] == pytest.approx(metrics.mean_squared_error(true, said) ** 0.5, rel=1e-12)
    assert found["r2"] == pytest.approx(metrics.r2_score(true, said), rel=1e-12)
    assert numbers(said, true * 0).keys() == {"rmse"}


def test_shapes_that_differ_are_refused() -> None:
    for ask in (yes_or_no, numbers):
        with pytest.raises(MismatchError, match=r"\[30, 5\] and the labels \[30\]"):
            ask(LOGITS, LABELS[:, 0])
