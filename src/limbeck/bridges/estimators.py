"""Estimators of scikit-learn's manner (its own, LightGBM's, XGBoost's): made, fitted and asked.

Shapes: M rows to fit on, N rows to ask about, F columns, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from limbeck.core.errors import DataError, RecipeError
from limbeck.core.lookup import find

__all__ = ["fitted"]

Asked = Callable[[np.ndarray], np.ndarray]


@runtime_checkable
class _Estimator(Protocol):
    """What can be fitted to rows and their classes."""

    def get_params(self, deep: bool = True) -> dict[str, Any]: ...
    def set_params(self, **params: Any) -> Any: ...
    def fit(self, X: Any, y: Any) -> Self: ...
    def predict(self, X: Any) -> Any: ...


@runtime_checkable
class _Probable(Protocol):
    """What gives a probability to each class that it was fitted on."""

    def predict_proba(self, X: Any) -> Any: ...


@runtime_checkable
class _Fitted(Protocol):
    """What knows, once fitted, which class each of its columns is."""

    classes_: Any


def fitted(name: str, options: Mapping[str, Any], rows: np.ndarray, labels: np.ndarray, *, classes: int, seed: int, labels_only: bool) -> Asked:
    """Make the estimator `python:package.module:Class`, fit it to `rows [M, F]` of classes `labels [M]`, and return what it says of `[N, F]`.

    That is `[N, C]` probabilities, zero for classes that no row has; or, with `labels_only`, labels `[N]`. An estimator that takes a `random_state` is given
    `seed` unless `options` say otherwise.

    Raises:
        RecipeError: no such class, no estimator, options that it does not take, or no probabilities.
        DataError: it cannot be fitted to these rows.
    """
    made = _made(name, options, seed)
    if not labels_only and not isinstance(made, _Probable):
        raise RecipeError(f"{name} with these options gives no probabilities: choose another estimator, or take its labels, answers: labels")
    try:
        made.fit(rows, labels)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} cannot be fitted to {len(rows)} rows of {rows.shape[1]} columns: {' '.join(str(error).split())}") from error
    if labels_only or not isinstance(made, _Probable):
        return lambda asked: np.asarray(made.predict(asked))
    if not isinstance(made, _Fitted):
        raise RecipeError(f"{name} does not say by classes_ which class each of its columns is: it is no classifier")
    probable, columns = made, np.asarray(made.classes_).astype(np.int64)

    def ask(asked: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(asked), classes))
        whole[:, columns] = probable.predict_proba(asked)
        return whole

    return ask


def _made(name: str, options: Mapping[str, Any], seed: int) -> _Estimator:
    part = find("teachers", name)
    try:
        made = part(**options)
    except TypeError as error:
        raise RecipeError(f"{name} cannot be made of the options {', '.join(options) or '(none)'}: {error}") from None
    if not isinstance(made, _Estimator):
        raise RecipeError(f"{name} gives a {type(made).__name__}, which has no fit, predict, get_params and set_params: name an estimator's class")
    if "random_state" in made.get_params() and "random_state" not in options:
        made.set_params(random_state=seed)
    return made
