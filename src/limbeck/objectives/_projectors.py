"""From a student's feature to the shape of a teacher's: only what is needed of resizing and a linear map.

Shapes: N examples, D channels, T places in a sequence, H x W places in a map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError

__all__ = ["Projector", "projector", "projectors"]

_RANKS = {2: "vectors [N, D]", 3: "sequences [N, T, D]", 4: "maps [N, D, H, W]"}


class Projector(nn.Module):
    """Resize a map `[N, D, H, W]` to `size` (by averages where it is larger, bilinearly where it is smaller), then map D channels to D' linearly."""

    def __init__(self, size: Sequence[int] | None, linear: nn.Conv2d | nn.Linear | None) -> None:
        super().__init__()
        self.size = None if size is None else tuple(size)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """A student's feature `[N, ...]` to the teacher's shape, in the precision of the weights."""
        if self.linear is not None:
            x = x.to(self.linear.weight.dtype)
        if self.size is not None:
            high, wide = self.size
            x = F.adaptive_avg_pool2d(x, (min(x.shape[2], high), min(x.shape[3], wide)))
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return x if self.linear is None else self.linear(x)


def projector(student: Tensor, teacher: Tensor, *, names: tuple[str, str]) -> Projector | None:
    """Return what maps the feature `student` to the shape of `teacher`, None where the shapes are equal already.

    A 1x1 convolution for maps, a linear layer for vectors and for the last axis of sequences, both with bias, on the student's device and in float32 at least.
    `names` are the two layers, for the message.

    Raises:
        MismatchError: features of different ranks, sequences of different lengths, a rank other than 2, 3 or 4.
    """
    ours, theirs = f"the student's {names[0]!r} gives {list(student.shape)}", f"the teacher's {names[1]!r} {list(teacher.shape)}"
    if student.ndim != teacher.ndim or student.ndim not in _RANKS:
        raise MismatchError(f"{ours}, {theirs}: name two layers that both give {' or both '.join(_RANKS.values())}")
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        raise MismatchError(f"{ours}, {theirs}: sequences of different lengths cannot be matched place by place; name layers of equal length")
    axis = -1 if student.ndim == 3 else 1
    size = teacher.shape[2:] if student.ndim == 4 and student.shape[2:] != teacher.shape[2:] else None
    have, want = student.shape[axis], teacher.shape[axis]
    if size is None and have == want:
        return None
    place = {"device": student.device, "dtype": torch.promote_types(student.dtype, torch.float32)}
    linear = None
    if have != want:
        linear = nn.Conv2d(have, want, 1, **place) if student.ndim == 4 else nn.Linear(have, want, **place)
    return Projector(size, linear)


def projectors(features: Sequence[tuple[Tensor, Tensor]], names: Sequence[tuple[str, str]]) -> nn.ModuleList:
    """Return a projector for each pair of features, the identity where their shapes are equal already."""
    made = (projector(ours, theirs, names=both) for (ours, theirs), both in zip(features, names, strict=True))
    return nn.ModuleList(nn.Identity() if one is None else one for one in made)
