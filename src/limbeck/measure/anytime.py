"""What a network with exits is worth when it may stop early: accuracy against cost, by a threshold on its confidence.

E exits from the shallowest to the deepest, N examples, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.core.errors import DataError, MismatchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["THRESHOLDS", "policy"]

THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.01)
"""Confidences at which an example leaves: at 0 by the first exit, above 1 never before the last. They are fixed, so that none is chosen on the test split."""


def policy(logits: "Sequence[Tensor]", labels: "Tensor", macs: Sequence[int], thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, Any]]:
    """Return for each threshold what comes of leaving by the first exit whose likeliest class has that probability: accuracy, mean MACs, and who leaves where.

    `logits`: E times `[N, C]`; `labels [N]`; `macs`: the cost of answering by each exit, those before it asked too.

    Raises:
        MismatchError: not one cost for each exit.
        DataError: no exit, or no example.

    >>> import torch
    >>> sure, unsure = torch.tensor([[9.0, 0.0], [0.1, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    >>> policy([sure, unsure], torch.tensor([0, 1]), [10, 30], [0.9])
    [{'threshold': 0.9, 'accuracy': 1.0, 'macs': 20.0, 'shares': [0.5, 0.5]}]
    """
    if len(logits) != len(macs):
        raise MismatchError(f"there are {len(logits)} exits and {len(macs)} costs: give one for each")
    if not logits or not len(labels):
        raise DataError("a policy needs an exit and an example at the least")
    sure, right = [], []
    for each in logits:
        confidence, guess = each.detach().double().softmax(-1).max(-1)
        sure.append(confidence.cpu().numpy())
        right.append((guess.cpu() == labels.cpu()).numpy())
    sureness, correct, costs = np.stack(sure), np.stack(right), np.asarray(macs, dtype=np.float64)  # [E, N]
    rows = np.arange(len(labels))
    found = []
    for threshold in thresholds:
        leaves = sureness >= threshold
        leaves[-1] = True
        at = leaves.argmax(0)  # [N], the first exit that is sure enough
        shares = [float((at == exit).mean()) for exit in range(len(costs))]
        found.append({"threshold": threshold, "accuracy": float(correct[at, rows].mean()), "macs": float(costs[at].mean()), "shares": shares})
    return found
