"""What an estimator of our own takes from scikit-learn to be one of its kind.

Shapes: N rows, F columns.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["BaseEstimator", "ClassifierMixin", "RegressorMixin", "check_is_fitted", "check_random_state", "checked_labels", "checked_numbers", "checked_rows"]

Numbers = npt.NDArray[np.float64]


def checked_rows(estimator: BaseEstimator, X: Any) -> Numbers:
    """Return rows `[N, F]` as float64, finite and of as many columns as those that the estimator was fitted to, or raise ValueError as scikit-learn does."""
    return np.asarray(validate_data(estimator, X, dtype=np.float64, reset=False), dtype=np.float64)


def checked_numbers(estimator: BaseEstimator, X: Any, y: Any, *, least: int) -> tuple[Numbers, Numbers]:
    """Return rows `[N, F]`, at least so many, and a number for each `[N]`, or raise ValueError as scikit-learn does."""
    rows, numbers = validate_data(estimator, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=least)
    return np.asarray(rows, dtype=np.float64), np.asarray(numbers, dtype=np.float64)


def checked_labels(estimator: BaseEstimator, X: Any, y: Any, *, least: int) -> tuple[Numbers, npt.NDArray[Any]]:
    """Return rows `[N, F]`, at least so many, and a label for each `[N]`, or raise ValueError as scikit-learn does."""
    rows, labels = validate_data(estimator, X, y, dtype=np.float64, ensure_min_samples=least)
    check_classification_targets(labels)
    return np.asarray(rows, dtype=np.float64), np.asarray(labels)
