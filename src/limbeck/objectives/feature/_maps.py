"""Maps `[N, D, H, W]` that are compared channel by channel, whatever their sizes.

Shapes: N examples, D channels, H x W places of a map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.objectives._precision import place
from limbeck.objectives._projectors import Projector

__all__ = ["channel_projectors", "check_maps", "common", "product", "smaller", "unit"]


def check_maps(student: Tensor, teacher: Tensor, names: tuple[str, str] | None = None) -> None:
    """Refuse two features that are not both maps of the same examples; `names` are the two layers, for the message."""
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        ours, theirs = ("'s feature", "'s feature") if names is None else (f"'s {names[0]!r}", f"'s {names[1]!r}")
        raise MismatchError(
            f"the student{ours} is {list(student.shape)} and the teacher{theirs} {list(teacher.shape)}: "
            "name two layers that give maps [N, D, H, W] of the same examples"
        )


def common(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one precision, float32 at least, the teacher's cut off from its graph."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def smaller(one: Tensor, other: Tensor, *, largest: bool = False) -> tuple[Tensor, Tensor]:
    """Return two maps pooled to the smaller height and the smaller width of the two, by averages or by the largest value."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return _pooled(one, size, largest), _pooled(other, size, largest)


def _pooled(x: Tensor, size: tuple[int, int], largest: bool) -> Tensor:
    if x.shape[2:] == size:
        return x
    high, wide = x.shape[2] // size[0], x.shape[3] // size[1]
    if (high * size[0], wide * size[1]) == tuple(x.shape[2:]):  # the same windows, many times faster than the adaptive ones
        return F.max_pool2d(x, (high, wide)) if largest else F.avg_pool2d(x, (high, wide))
    return F.adaptive_max_pool2d(x, size) if largest else F.adaptive_avg_pool2d(x, size)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Return `x` with its vectors along `dim` at Euclidean length one; a vector of zeros stays one, and its gradient finite."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(length == 0, 1.0, length)


def product(one: Tensor, other: Tensor) -> Tensor:
    """Return `one [N, A, M]` times `other [N, B, M]` transposed, `[N, A, B]`, in their own precision under autocast too."""
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.mT


def channel_projectors(features: Sequence[tuple[Tensor, Tensor]], names: Sequence[tuple[str, str]]) -> nn.ModuleList:
    """Return for each pair of maps a 1x1 convolution from the student's channels to the teacher's, the identity where they are as many."""
    made = nn.ModuleList()
    for (ours, theirs), both in zip(features, names, strict=True):
        check_maps(ours, theirs, both)
        same = ours.shape[1] == theirs.shape[1]
        made.append(nn.Identity() if same else Projector(None, nn.Conv2d(ours.shape[1], theirs.shape[1], 1, **place(ours))))
    return made
