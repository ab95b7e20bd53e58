"""The curve of a confidence threshold, example by example."""

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError
from limbeck.measure.anytime import THRESHOLDS, policy


def naive(logits: list[Tensor], labels: Tensor, macs: list[int], threshold: float) -> tuple[float, float]:
    right = cost = 0.0
    for row, label in enumerate(labels.tolist()):
        for exit, each in enumerate(logits):
            probability = each[row].double().softmax(-1)
            if probability.max() >= threshold or exit == len(logits) - 1:
                right += int(probability.argmax()) == label
                cost += macs[exit]
                break
    return right / len(labels), cost / len(labels)


def test_it_is_the_naive_walk() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = [2.0 * torch.randn(50, 4, generator=draw) for _ in range(3)]
    labels = torch.randint(0, 4, (50,), generator=draw)
    found = policy(logits, labels, [10, 25, 70])
    assert [one["threshold"] for one in found] == list(THRESHOLDS)
    for one in found:
        assert (one["accuracy"], one["macs"]) == pytest.approx(naive(logits, labels, [10, 25, 70], one["threshold"]))
        assert sum(one["shares"]) == pytest.approx(1.0)
    costs = [one["macs"] for one in found]
    assert costs == sorted(costs), "who asks for more confidence pays more"
    assert found[0]["shares"] == [1.0, 0.0, 0.0] and found[-1]["shares"] == [0.0, 0.0, 1.0]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(MismatchError, match="1 exits and 2 costs"):
        policy([torch.zeros(2, 3)], torch.tensor([0, 1]), [1, 2])
    with pytest.raises(DataError, match="an exit and an example"):
        policy([], torch.tensor([0]), [])
    with pytest.raises(DataError, match="an exit and an example"):
        policy([torch.zeros(0, 3)], torch.zeros(0, dtype=torch.int64), [1])
