"""Estimators are made by name, fitted by seed, and answer for every class."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from limbeck.bridges.estimators import fitted
from limbeck.core.errors import DataError, RecipeError

FOREST = "python:sklearn.ensemble:RandomForestClassifier"


def rows() -> tuple[np.ndarray, np.ndarray]:
    made = np.random.default_rng(0)
    labels = made.choice([0, 2, 3], 60)
    return (made.normal(size=(60, 4)) + labels[:, None]).astype(np.float32), labels


def test_it_says_what_the_estimator_says_with_zero_for_a_class_without_a_row() -> None:
    x, y = rows()
    said = fitted(FOREST, {"n_estimators": 7}, x, y, classes=5, seed=3, labels_only=False)(x[:9])
    by_hand = RandomForestClassifier(n_estimators=7, random_state=3).fit(x, y).predict_proba(x[:9])
    assert said.shape == (9, 5) and not said[:, [1, 4]].any()
    np.testing.assert_array_equal(said[:, [0, 2, 3]], by_hand)


def test_the_seed_decides_unless_the_options_do() -> None:
    x, y = rows()

    def ask(seed: int, **options: int) -> np.ndarray:
        return fitted(FOREST, {"n_estimators": 5, **options}, x, y, classes=4, seed=seed, labels_only=False)(x)

    np.testing.assert_array_equal(ask(1), ask(1))
    assert (ask(1) != ask(2)).any()
    np.testing.assert_array_equal(ask(1, random_state=7), ask(2, random_state=7))


def test_labels_alone() -> None:
    x, y = rows()
    said = fitted("python:sklearn.svm:LinearSVC", {}, x, y, classes=4, seed=0, labels_only=True)(x)
    assert said.shape == (60,) and set(said) <= {0, 2, 3} and (said == y).mean() > 0.8


def test_what_is_no_classifier_is_refused_in_one_line() -> None:
    x, y = rows()
    with pytest.raises(RecipeError, match=r"LinearSVC with these options gives no probabilities: .* answers: labels"):
        fitted("python:sklearn.svm:LinearSVC", {}, x, y, classes=4, seed=0, labels_only=False)
    with pytest.raises(RecipeError, match="gives a dict, which has no fit"):
        fitted("python:builtins:dict", {}, x, y, classes=4, seed=0, labels_only=False)
    with pytest.raises(RecipeError, match="cannot be made of the options n_trees"):
        fitted(FOREST, {"n_trees": 3}, x, y, classes=4, seed=0, labels_only=False)
    with pytest.raises(DataError, match=r"cannot be fitted to 60 rows of 4 columns: .*n_estimators"):
        fitted(FOREST, {"n_estimators": -1}, x, y, classes=4, seed=0, labels_only=False)


def test_lightgbm() -> None:
    pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    x, y = rows()
    said = fitted("python:lightgbm:LGBMClassifier", {"n_estimators": 5, "verbose": -1}, x, y, classes=5, seed=0, labels_only=False)(x)
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-6)
    assert (said.argmax(1) == y).mean() > 0.8
