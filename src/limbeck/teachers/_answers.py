"""From what a black box answers to a response: checked row by row, and finite.

Shapes: N rows asked about, C classes.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from limbeck.core.errors import DataError, RecipeError

__all__ = ["Answers", "responses"]

Answers = Literal["probabilities", "log_probabilities", "logits", "labels"]
_SLACK = 1e-3
"""By how much a row's sum may miss one: what float16 and printed digits lose."""


def responses(
    said: Any, answers: Answers, *, count: int, classes: int | None = None, confidence: float = 1.0, floor: float = 1e-6, who: Callable[[int], str] = str
) -> np.ndarray:
    """Return logits `[N, C]` in float32 of what a black box said of `count` inputs; `classes` is C where it is known, and `who(n)` names input n in messages.

    Probabilities p, or their logarithms, become `log((1 - C floor) p + floor)`, which is finite where p is zero and sums to one; logits stay as they are. A
    label y becomes those of p_y = `confidence` and `(1 - confidence) / (C - 1)` for every other class.

    Raises:
        RecipeError: a floor that leaves next to nothing.
        DataError: another number of rows or of classes than was asked about, NaN, a row that is no distribution, a label out of range.
    """
    rows = _array(said)
    if rows.shape[:1] != (count,):
        raise DataError(f"the black box was asked about {count} inputs and answers with {rows.shape[0] if rows.ndim else 'no'} rows: one for each is needed")
    if answers == "labels":
        return _floored(_one_hot(rows, classes, confidence, who), floor)
    if rows.ndim != 2 or rows.shape[1] < 2:
        what = "; labels are told by answers: labels" if rows.ndim == 1 or rows.shape[1:] == (1,) else ""
        raise DataError(f"the black box answers with {list(rows.shape)}; {answers} are [{count}, C], C of 2 or more{what}")
    if classes is not None and rows.shape[1] != classes:
        raise DataError(f"the black box knows {rows.shape[1]} classes and the task has {classes}: give one column for each class, in the task's order")
    _refuse(np.isnan(rows).any(1), rows, who, "holds NaN")
    if answers == "logits":
        _refuse(~np.isfinite(rows).all(1), rows, who, "is not finite")
        return rows.astype(np.float32)
    if answers == "log_probabilities":
        with np.errstate(over="ignore"):
            rows = np.exp(rows)
    _refuse((rows < -_SLACK).any(1), rows, who, f"has a probability below zero; is it {_others(answers)}")
    sums = rows.clip(0).sum(1)
    _refuse(~(abs(sums - 1) <= _SLACK), sums, who, f"does not sum to 1; is it {_others(answers)}", "which sums to")
    return _floored(rows.clip(0) / sums[:, None], floor)


def _array(said: Any) -> np.ndarray:
    try:
        rows = np.asarray(said)
        return rows if rows.dtype.kind in "iu" else rows.astype(np.float64)
    except (ValueError, TypeError):
        raise DataError(f"the black box answers with a {type(said).__name__} that is no table of numbers: rows of unequal length, or text") from None


def _one_hot(rows: np.ndarray, classes: int | None, confidence: float, who: Callable[[int], str]) -> np.ndarray:
    """Labels `[N]` or `[N, 1]` as probabilities `[N, C]`."""
    if classes is None:
        raise DataError("labels do not say how many classes there are: give classes")
    if rows.shape[1:] not in ((), (1,)):
        raise DataError(f"the black box answers with {list(rows.shape)}; labels are [{len(rows)}], one for each input")
    labels = rows.reshape(-1)
    _refuse(~((labels >= 0) & (labels < classes) & (labels == np.floor(labels))), labels, who, f"is no class: labels are 0..{classes - 1}", "which is")
    found = np.full((len(labels), classes), (1 - confidence) / (classes - 1))
    found[np.arange(len(labels)), labels.astype(np.int64)] = confidence
    return found


def _floored(p: np.ndarray, floor: float) -> np.ndarray:
    if p.shape[1] * floor >= 0.5:
        raise RecipeError(f"floor {floor:g} for each of {p.shape[1]} classes takes half of every distribution and more: lower it")
    return np.log((1 - p.shape[1] * floor) * p + floor).astype(np.float32)


def _refuse(bad: Any, rows: np.ndarray, who: Callable[[int], str], what: str, told: str = "which begins") -> None:
    bad = np.asarray(bad)
    if bad.any():
        first = int(bad.argmax())
        shown = ", ".join(f"{value:g}" for value in np.atleast_1d(rows[first])[:4])
        raise DataError(f"the black box's answer to {who(first)} {what} ({int(bad.sum())} of {len(rows)} rows; the first, {told} {shown})")


def _others(answers: str) -> str:
    return " or ".join(one for one in get_args(Answers) if one not in (answers, "labels")) + "? say so by answers"
