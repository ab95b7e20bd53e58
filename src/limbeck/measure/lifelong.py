"""What a sequence of tasks has left: the accuracy matrix and its figures.

`R [T, T]`: `R[i][j]` is the accuracy on task j of the model that has just learnt task i, from 0; None where it is not known, as above the diagonal of a head
that grows.
Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NIPS 2017, arXiv:1706.08840; Chaudhry et al., "Riemannian Walk for Incremental
Learning", ECCV 2018, arXiv:1801.10112; Rebuffi et al., "iCaRL", CVPR 2017, arXiv:1611.07725.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import MismatchError

__all__ = ["Matrix", "average_accuracy", "backward_transfer", "forgetting", "forward_transfer", "incremental_accuracy", "task_accuracies"]

Row = Sequence[float | None]
Matrix = Sequence[Row]


def task_accuracies(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], sizes: Sequence[int], *, told: bool = False) -> list[float | None]:
    """Return the accuracy on each task, a row of R, of `logits [N, C]` and `labels [N]`; task t has `sizes[t]` of the C classes, in order.

    Class-incremental: a choice among all classes. Task-incremental, with `told`: among the classes of the example's own task. None for a task without examples.

    Raises:
        MismatchError: tasks that do not share out the classes, or unequal lengths.

    >>> logits, labels = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), np.array([0, 1])
    >>> task_accuracies(logits, labels, [2, 1]), task_accuracies(logits, labels, [2, 1], told=True)
    ([0.5, None], [1.0, None])
    """
    if logits.ndim != 2 or sum(sizes) != logits.shape[1] or len(labels) != len(logits):
        raise MismatchError(f"logits {list(logits.shape)}, {len(labels)} labels and tasks of {list(sizes)} classes do not fit: tasks share out the classes")
    task = np.repeat(np.arange(len(sizes)), sizes)  # [C]
    own = task[labels]
    heard = np.where(task[None, :] == own[:, None], logits, -np.inf) if told else logits
    right = heard.argmax(1) == labels
    return [float(right[own == one].mean()) if (own == one).any() else None for one in range(len(sizes))]


def average_accuracy(matrix: Matrix) -> float | None:
    """Return `1/T sum_j R[T-1][j]`, the accuracy after the last task (Lopez-Paz and Ranzato 2017, ACC), over the tasks that were tested.

    >>> average_accuracy([[1.0, None], [0.5, 0.75]])
    0.625
    """
    return _mean([one for one in matrix[-1] if one is not None])


def incremental_accuracy(matrix: Matrix) -> float | None:
    """Return the mean over i of the mean of row i up to its diagonal: the average incremental accuracy of Rebuffi et al. 2017, for tasks of equal weight.

    >>> incremental_accuracy([[1.0, None], [0.5, 0.75]])
    0.8125
    """
    rows = [_mean([one for one in row[: at + 1] if one is not None]) for at, row in enumerate(matrix)]
    return _mean([one for one in rows if one is not None])


def backward_transfer(matrix: Matrix) -> float | None:
    """Return `1/(T-1) sum_{j<T-1} (R[T-1][j] - R[j][j])`, negative where something was lost (Lopez-Paz and Ranzato 2017, BWT); None for a single task.

    >>> backward_transfer([[1.0, None], [0.5, 0.75]])
    -0.5
    """
    return _mean(_gaps((now, matrix[at][at]) for at, now in enumerate(matrix[-1][:-1])))


def forward_transfer(matrix: Matrix, before: Row) -> float | None:
    """Return `1/(T-1) sum_{j>0} (R[j-1][j] - b_j)`, b the accuracies `[T]` of an untrained model (Lopez-Paz and Ranzato 2017, FWT).

    None where no model was asked about a task before it learnt it: one whose head grows cannot be.

    >>> forward_transfer([[1.0, 0.5], [0.5, 0.75]], [0.1, 0.25])
    0.25
    """
    return _mean(_gaps((matrix[at - 1][at], before[at]) for at in range(1, len(matrix))))


def forgetting(matrix: Matrix) -> float | None:
    """Return `1/(T-1) sum_{j<T-1} (max_{j<=i<T-1} R[i][j] - R[T-1][j])` (Chaudhry et al. 2018, eq. 3); None for a single task.

    >>> forgetting([[0.5, None, None], [0.75, 0.5, None], [0.25, 0.25, 1.0]])
    0.375
    """
    best = (max((one for one in (row[at] for row in matrix[at:-1]) if one is not None), default=None) for at in range(len(matrix) - 1))
    return _mean(_gaps(zip(best, matrix[-1][:-1], strict=True)))


def _gaps(pairs: Iterable[tuple[float | None, float | None]]) -> list[float]:
    return [a - b for a, b in pairs if a is not None and b is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
