"""The labelled class of each prediction, and all the others. Shapes: C classes; every other axis counts predictions."""

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError

__all__ = ["others", "target", "where_labelled"]


def target(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labelled class as an index `[..., 1]`, and where `[...]` it is one; elsewhere (-100, as some loaders mark what does not count) the index is 0.

    Raises:
        MismatchError: labels that are no class numbers, or not one for each prediction.
    """
    if labels.shape != logits.shape[:-1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise MismatchError(
            f"the labels are {labels.dtype} {list(labels.shape)} and the logits {list(logits.shape)}: give one class number for each prediction, "
            f"integers {list(logits.shape[:-1])}"
        )
    valid = (labels >= 0) & (labels < logits.shape[-1])
    return torch.where(valid, labels.long(), 0).unsqueeze(-1), valid


def where_labelled(loss: Tensor, valid: Tensor) -> Tensor:
    """Return the loss where the label is a class, and what is not a number elsewhere: a mask leaves it out, and without one it is not hidden."""
    return torch.where(valid, loss, float("nan"))


def others(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities `[..., C]` among all classes but the labelled one (-inf there), and the log-sum-exp `[..., 1]` of their logits.

    There must be another class.
    """
    rest = logits.scatter(-1, index, float("-inf"))
    total = rest.logsumexp(-1, keepdim=True)
    return rest - total, total
