"""From a student's neurons to a teacher's before the ReLU: a 1x1 convolution and a batch norm.

Shapes: N examples, D channels, H x W places of a map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.objectives._precision import place
from limbeck.objectives._projectors import Projector, projector

from ._blocks import Norm, batch_mean

__all__ = ["Connector", "connectors", "mean_over_pairs"]


class Connector(nn.Module):
    """Bring the places to those of the teacher, then a linear map of the channels without bias, then batch norm."""

    def __init__(self, reshape: Projector, linear: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.reshape = reshape
        self.linear = linear
        self.norm = Norm(len(linear.weight), **place(linear.weight))
        nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """A student's feature to the teacher's shape, `[N, D, H, W]` or `[N, D]`, in the precision of the weights."""
        return self.norm(self.linear(self.reshape(x.to(self.linear.weight.dtype))))


def connectors(name: str, features: Sequence[tuple[Tensor, Tensor]], names: Sequence[tuple[str, str]]) -> nn.ModuleList:
    """Return a connector for each pair of features, the identity where their shapes are equal already.

    Raises:
        MismatchError: features that cannot meet, that are neither vectors nor maps, or never below zero, as they are after a ReLU.
    """
    made = nn.ModuleList()
    for (ours, theirs), both in zip(features, names, strict=True):
        for side, path, feature in (("student", both[0], ours), ("teacher", both[1], theirs)):
            if feature.numel() and feature.min() >= 0:
                raise MismatchError(
                    f"the {side}'s {path!r} is never below zero, as after a ReLU, and {name} reads what comes before it: "
                    "name the batch norm before the ReLU, or the ReLU's own input, such as layer1.act:in"
                )
        fitting = projector(ours, theirs, names=both)
        if fitting is None:
            made.append(nn.Identity())
            continue
        if theirs.ndim == 3:
            raise MismatchError(
                f"the student's {both[0]!r} gives {list(ours.shape)}, the teacher's {both[1]!r} {list(theirs.shape)}: {name} connects maps or vectors"
            )
        have, want, where = ours.shape[-1 if ours.ndim == 3 else 1], theirs.shape[1], place(ours)
        linear = nn.Conv2d(have, want, 1, bias=False, **where) if theirs.ndim == 4 else nn.Linear(have, want, bias=False, **where)
        made.append(Connector(Projector(None, None, reshape=fitting.reshape), linear))
    return made


def mean_over_pairs(losses: Sequence[Tensor], decay: float) -> Tensor:
    """Return the mean over examples of the sum of `losses`, `[N]` for each pair of layers, each pair at `decay` times the weight of the pair after it."""
    return batch_mean(torch.stack([loss * decay ** (len(losses) - 1 - at) for at, loss in enumerate(losses)]).sum(0))
