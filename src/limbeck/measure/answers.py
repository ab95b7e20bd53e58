"""How good answers other than classes are over a whole split: the figures that no mean over examples gives.

N examples, C classes or numbers; everything is computed in float64.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import MismatchError

__all__ = ["numbers", "yes_or_no"]

_Array = npt.NDArray[Any]


def yes_or_no(logits: _Array, labels: _Array) -> dict[str, float]:
    """Return figures of C yes-or-no answers, `logits [N, C]` against `labels [N, C]` of 0 and 1; yes is a probability above 1/2.

    `mean_average_precision`  over the classes with a positive label: `sum_k (recall_k - recall_{k-1}) precision_k`, k running down a class's distinct scores;
    left out where no class has one;  `micro_f1`  2 TP / (2 TP + FP + FN), counted over all classes;  `macro_f1`  its mean over classes, a class neither said
    nor true counting 0. No figure for labels between 0 and 1.

    >>> yes_or_no(np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([[0, 0], [1, 1]]))
    {'mean_average_precision': 1.0, 'micro_f1': 0.8, 'macro_f1': 0.8333333333333333}
    """
    z, y = _pair(logits, labels)
    if not np.isin(y, (0.0, 1.0)).all():
        return {}
    said, true = z > 0, y > 0
    hits, wrong = (said & true).sum(0), (said != true).sum(0)
    total = 2 * hits.sum() + wrong.sum()
    found = [_average_precision(z[:, c], true[:, c]) for c in range(z.shape[1]) if true[:, c].any()]
    told = {"mean_average_precision": float(np.mean(found))} if found else {}
    each = 2 * hits / np.maximum(2 * hits + wrong, 1)
    return told | {"micro_f1": float(2 * hits.sum() / max(total, 1)), "macro_f1": float(each.mean())}


def _average_precision(scores: _Array, true: _Array) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # the end of each run of equal scores
    at, precision = hits[last] / hits[-1], (hits / np.arange(1, len(hits) + 1))[last]
    return float((np.diff(at, prepend=0.0) * precision).sum())


def numbers(said: _Array, true: _Array) -> dict[str, float]:
    """Return figures of real numbers `[N, C]`: `rmse`, the root of the mean squared error over all N C of them, and `r2`, the coefficient of determination.

    `r2 = mean_c [1 - sum_n (y_nc - z_nc)^2 / sum_n (y_nc - mean_n y_nc)^2]`, left out where a number's truth never varies.

    >>> numbers(np.array([[1.0], [2.0]]), np.array([[0.0], [2.0]]))
    {'rmse': 0.7071067811865476, 'r2': 0.5}
    """
    z, y = _pair(said, true)
    squares, spread = np.square(z - y).sum(0), np.square(y - y.mean(0)).sum(0)
    found = {"rmse": float(np.sqrt(squares.sum() / z.size))}
    return found | ({"r2": float(np.mean(1 - squares / spread))} if (spread > 0).all() else {})


def _pair(said: _Array, true: _Array) -> tuple[_Array, _Array]:
    if said.shape != true.shape or said.ndim != 2 or not said.size:
        raise MismatchError(f"the answers are {list(said.shape)} and the labels {list(true.shape)}: both must be the same [N, C], of one example or more")
    return said.astype(np.float64), true.astype(np.float64)
