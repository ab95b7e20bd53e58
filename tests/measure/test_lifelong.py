"""Figures of a sequence of tasks, against their formulas written out and a matrix worked by hand."""

import numpy as np
import pytest

from limbeck.core.errors import MismatchError
from limbeck.measure.lifelong import average_accuracy, backward_transfer, forgetting, forward_transfer, incremental_accuracy, task_accuracies

FULL = [[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.8, 0.5, 0.95]]
GROWN = [[0.9, None, None], [0.7, 0.8, None], [0.8, 0.5, 0.95]]


@pytest.mark.parametrize("matrix", [FULL, GROWN])
def test_the_figures_by_hand(matrix: list[list[float | None]]) -> None:
    assert average_accuracy(matrix) == pytest.approx((0.8 + 0.5 + 0.95) / 3)
    assert backward_transfer(matrix) == pytest.approx(((0.8 - 0.9) + (0.5 - 0.8)) / 2)
    assert forgetting(matrix) == pytest.approx(((0.9 - 0.8) + (0.8 - 0.5)) / 2)
    assert incremental_accuracy(matrix) == pytest.approx((0.9 + 0.75 + 0.75) / 3)


def test_forward_transfer_needs_models_that_were_asked_beforehand() -> None:
    assert forward_transfer(FULL, [0.1, 0.2, 0.3]) == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    assert forward_transfer(GROWN, [0.1, 0.2, 0.3]) is None


def test_forgetting_counts_from_the_best_and_may_be_negative() -> None:
    assert forgetting([[0.5, None], [0.7, 0.9]]) == pytest.approx(-0.2)
    assert forgetting([[0.2, None, None], [0.6, 0.5, None], [0.5, 0.5, 0.1]]) == pytest.approx((0.1 + 0.0) / 2)


def test_a_single_task_and_unknown_rows_have_no_loss() -> None:
    assert backward_transfer([[0.9]]) is None and forgetting([[0.9]]) is None and average_accuracy([[0.9]]) == 0.9
    assert average_accuracy([[None, 0.5]]) == 0.5 and average_accuracy([[None]]) is None
    assert forgetting([[None, None], [0.5, 0.9]]) is None


def test_accuracy_by_task_by_counting() -> None:
    made = np.random.default_rng(0)
    logits, labels, sizes = made.normal(size=(200, 6)), made.integers(0, 6, 200), [2, 1, 3]
    starts = [0, 2, 3]
    for told in (False, True):
        found = task_accuracies(logits, labels, sizes, told=told)
        for task, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            rows = [at for at, label in enumerate(labels) if start <= label < start + size]
            right = 0
            for at in rows:
                choices = range(start, start + size) if told else range(6)
                right += max(choices, key=lambda c, at=at: logits[at, c]) == labels[at]
            assert found[task] == pytest.approx(right / len(rows))
        assert found[1] == 1.0 or not told


def test_tasks_that_do_not_share_out_the_classes_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"logits \[2, 3\], 2 labels and tasks of \[2, 2\] classes do not fit"):
        task_accuracies(np.zeros((2, 3)), np.zeros(2, np.int64), [2, 2])
