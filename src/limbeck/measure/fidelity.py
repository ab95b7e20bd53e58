"""What a student kept of its teacher, and how right and how honest it is.

N examples, C classes; everything is computed in float64, from logits as they are (temperature 1).
"""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.core.errors import DataError, MismatchError

from .statistics import wilson

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fidelity", "per_class", "reliability"]


def _array(values: Any) -> np.ndarray:
    torch = sys.modules.get("torch")  # where torch was never imported nothing can be a tensor
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _logits(name: str, values: "np.ndarray | Tensor") -> np.ndarray:
    array = _array(values)
    if array.ndim != 2 or array.shape[1] < 2:
        raise MismatchError(f"{name} must be [N, C] with at least two classes, not {list(array.shape)}")
    if not len(array):
        raise DataError(f"{name} holds no example: there is nothing to measure")
    array = array.astype(np.float64)
    bad = int((~np.isfinite(array)).any(axis=1).sum())
    if bad:
        raise DataError(f"{name} is not finite for {bad} of {len(array)} examples: the model gave NaN or infinity")
    return array


def _labels(values: "np.ndarray | Tensor", logits: np.ndarray) -> np.ndarray:
    labels = _array(values)
    n, classes = logits.shape
    if labels.shape != (n,):
        raise MismatchError(f"labels {list(labels.shape)} do not fit logits [{n}, {classes}]: one class index per example is needed")
    if labels.dtype.kind not in "iu":
        raise MismatchError(f"labels must be integers, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels run from {labels.min()} to {labels.max()}, but the model has the classes 0 to {classes - 1}")
    return labels.astype(np.int64)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _bins(confidence: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges `[bins + 1]`, and for each example `[N]` the bin m with edge(m) < confidence <= edge(m + 1)."""
    if bins < 1:
        raise MismatchError(f"bins {bins} must be at least 1")
    edges = np.linspace(0.0, 1.0, bins + 1)
    return edges, np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def reliability(logits: "np.ndarray | Tensor", labels: "np.ndarray | Tensor", bins: int = 15) -> list[dict[str, float]]:
    """Return, for bins of equal width over the confidence (the largest probability), what a reliability diagram shows.

    A bin holds low < confidence <= high; `confidence` and `accuracy` are its means (0 where it is empty), `count` its examples.
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, eq. 1 and 2.

    >>> [row] = [row for row in reliability(np.array([[0.0, 9.0], [9.0, 0.0]]), np.array([1, 1])) if row["count"]]
    >>> row["count"], row["accuracy"], round(row["confidence"], 4)
    (2, 0.5, 0.9999)
    """
    z = _logits("logits", logits)
    y = _labels(labels, z)
    confidence, correct = np.exp(_log_softmax(z).max(axis=1)), z.argmax(axis=1) == y
    edges, where = _bins(confidence, bins)
    counts = np.bincount(where, minlength=bins)
    of = np.maximum(counts, 1)
    mean_confidence = np.bincount(where, weights=confidence, minlength=bins) / of
    accuracy = np.bincount(where, weights=correct, minlength=bins) / of
    return [
        {
            "low": float(edges[m]),
            "high": float(edges[m + 1]),
            "confidence": float(mean_confidence[m]),
            "accuracy": float(accuracy[m]),
            "count": int(counts[m]),
        }
        for m in range(bins)
    ]


def per_class(logits: "np.ndarray | Tensor", labels: "np.ndarray | Tensor", classes: int) -> list[dict[str, int]]:
    """Return, for each class by its index, how many examples it has (`total`) and how many of them were classified right (`correct`).

    >>> per_class(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), 2)
    [{'correct': 1, 'total': 1}, {'correct': 0, 'total': 1}]
    """
    z = _logits("logits", logits)
    y = _labels(labels, z)
    if classes != z.shape[1]:
        raise MismatchError(f"logits have {z.shape[1]} classes, the data have {classes}: give the logits of a model of this task")
    total = np.bincount(y, minlength=classes)
    correct = np.bincount(y[z.argmax(axis=1) == y], minlength=classes)
    return [{"correct": int(correct[c]), "total": int(total[c])} for c in range(classes)]


def fidelity(logits: "np.ndarray | Tensor", labels: "np.ndarray | Tensor", teacher_logits: "np.ndarray | Tensor | None" = None) -> dict[str, float]:
    """Return how right a model is, how calibrated, and how much it says what its teacher says.

    `accuracy`, `accuracy_low`, `accuracy_high`  top-1 and its 95% Wilson interval;  `errors`, `examples`  counts
    `nll`  mean -log p(label), in nats;  `ece`  expected calibration error, sum over 15 equal-width bins of count/N |accuracy - confidence|
    (Guo et al., ICML 2017, arXiv:1706.04599, eq. 3)
    and with a teacher `agreement`, `agreement_low`, `agreement_high`  same top-1 class as the teacher, with its 95% Wilson interval;
    `kl_to_teacher`  mean KL(teacher || student) at temperature 1, in nats. Of equal largest logits the first counts.

    Args:
        logits: of the model, `[N, C]`.
        labels: class indices, `[N]`.
        teacher_logits: of the teacher on the same examples in the same order, `[N, C]`.

    Raises:
        DataError: no examples, logits that are not finite, labels out of range.
        MismatchError: shapes that do not fit one another.

    >>> found = fidelity(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 0]), np.array([[2.0, 0.0], [0.0, 2.0]]))
    >>> found["accuracy"], found["errors"], found["agreement"], found["kl_to_teacher"]
    (0.5, 1, 1.0, 0.0)
    """
    z = _logits("logits", logits)
    y = _labels(labels, z)
    n = len(z)
    log_p, answer = _log_softmax(z), z.argmax(axis=1)
    right = int((answer == y).sum())
    low, high = wilson(right, n)
    rows = reliability(z, y)
    found: dict[str, Any] = {
        "accuracy": right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "errors": n - right,
        "examples": n,
        "nll": float(-log_p[np.arange(n), y].mean()),
        "ece": sum(row["count"] / n * abs(row["accuracy"] - row["confidence"]) for row in rows),
    }
    if teacher_logits is not None:
        t = _logits("teacher_logits", teacher_logits)
        if t.shape != z.shape:
            raise MismatchError(f"logits {list(z.shape)} and teacher_logits {list(t.shape)} differ: both must answer the same examples with the same classes")
        log_t, same = _log_softmax(t), int((t.argmax(axis=1) == answer).sum())
        low, high = wilson(same, n)
        kl = float((np.exp(log_t) * (log_t - log_p)).sum(axis=1).mean())
        found |= {"agreement": same / n, "agreement_low": low, "agreement_high": high, "kl_to_teacher": max(kl, 0.0)}
    return found
