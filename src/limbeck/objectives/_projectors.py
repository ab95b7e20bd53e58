"""From a student's feature to the shape of a teacher's: only what is needed of resizing, changing the form, and a linear map.

Shapes: N examples, D channels, T places in a sequence, H x W places in a map.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError

from ._precision import at_least_float32, place

__all__ = ["Projector", "as_map", "as_tokens", "projector", "projectors", "resized"]

_RANKS = {2: "vectors [N, D]", 3: "sequences [N, T, D]", 4: "maps [N, D, H, W]"}


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map `[N, D, H, W]` resized to `size`, or a sequence `[N, T, D]` to the one length in it: by averages where it is larger, linearly where smaller.

    >>> resized(torch.tensor([[[0.0], [2.0], [4.0], [6.0]]]), (2,)).flatten()
    tensor([1., 5.])
    """
    if x.ndim == 3:
        x = F.adaptive_avg_pool1d(x.transpose(1, 2), min(x.shape[1], size[0]))
        return F.interpolate(x, size[0], mode="linear", align_corners=False).transpose(1, 2)
    x = F.adaptive_avg_pool2d(x, (min(x.shape[2], size[0]), min(x.shape[3], size[1])))
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def as_tokens(x: Tensor, length: int) -> Tensor:
    """Return a map `[N, D, H, W]` as `length` tokens `[N, T, D]`, row by row.

    Where T is H W, those; where it is H W + 1, after a class token, which is the mean of the map. Else the map is first resized to a square of T or T - 1
    places, and where neither is a square, its tokens are resized as a sequence.

    >>> as_tokens(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 5).flatten()
    tensor([3., 1., 2., 3., 6.])
    """
    grid, extra = _grid(length, (x.shape[2], x.shape[3]))
    if grid is None:
        return resized(x.flatten(2).transpose(1, 2), (length,))
    tokens = (x if grid == tuple(x.shape[2:]) else resized(x, grid)).flatten(2).transpose(1, 2)
    return torch.cat([x.mean((2, 3)).unsqueeze(1), tokens], 1) if extra else tokens


def as_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return tokens `[N, T, D]` as a map `[N, D, H, W]` of `size`, row by row.

    Where T is H W + 1, the first is a class token and is left out; else T, or T - 1 after a class token, must be a square that is resized; where neither is,
    the tokens are resized as a sequence of H W.

    >>> as_map(torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]]), (2, 2))
    tensor([[[[1., 2.],
              [3., 4.]]]])
    """
    grid, extra = _grid(x.shape[1], size)
    if grid is None:
        x, grid, extra = resized(x, (math.prod(size),)), tuple(size), 0
    found = x[:, extra:].transpose(1, 2).unflatten(2, grid)
    return found if grid == tuple(size) else resized(found, size)


def _grid(length: int, size: Sequence[int]) -> tuple[tuple[int, int] | None, int]:
    """The map that `length` tokens are, `size` if it can be, and how many of them stand before it."""
    for extra in (0, 1):
        if length - extra == math.prod(size):
            return (size[0], size[1]), extra
    for extra in (0, 1):
        side = round((length - extra) ** 0.5)
        if side and side * side == length - extra:
            return (side, side), extra
    return None, 0


class Projector(nn.Module):
    """Resize a map `[N, D, H, W]` to `size` (by averages where it is larger, bilinearly where it is smaller), then map D channels to D' linearly.

    With `reshape` instead of a size, whatever it makes of the feature is mapped: see `projector`.
    """

    def __init__(self, size: Sequence[int] | None, linear: nn.Conv2d | nn.Linear | None, *, reshape: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.reshape = reshape if size is None else partial(resized, size=tuple(size))
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """A student's feature `[N, ...]` to the teacher's shape, in the precision of the weights, in float32 at least."""
        x = at_least_float32(x) if self.linear is None else x.to(self.linear.weight.dtype)
        if self.reshape is not None:
            x = self.reshape(x)
        return x if self.linear is None else self.linear(x)


def projector(student: Tensor, teacher: Tensor, *, names: tuple[str, str]) -> Projector | None:
    """Return what maps the feature `student` to the shape of `teacher`, None where the shapes are equal already.

    First the places, without weights: maps and sequences are resized (`resized`); a map becomes tokens (`as_tokens`) and tokens a map (`as_map`), class token
    included; a map or a sequence becomes a vector by the mean over its places, class token included. Then the channels, where their numbers differ: a 1x1
    convolution to maps, a linear layer to vectors and to the last axis of sequences, both with bias, on the student's device and in float32 at least.
    `names` are the two layers, for the message.

    Raises:
        MismatchError: a vector that would have to become a map or a sequence, a rank other than 2, 3 or 4.
    """
    ours, theirs = f"the student's {names[0]!r} gives {list(student.shape)}", f"the teacher's {names[1]!r} {list(teacher.shape)}"
    if student.ndim not in _RANKS or teacher.ndim not in _RANKS:
        raise MismatchError(f"{ours}, {theirs}: name layers that give {' or '.join(_RANKS.values())}")
    if student.ndim == 2 and teacher.ndim > 2:
        raise MismatchError(
            f"{ours}, {theirs}: a vector has no places to make {_RANKS[teacher.ndim]} of; name a layer of the student that gives maps or sequences, or one of "
            "the teacher that gives vectors"
        )
    reshape = _reshape(student, teacher)
    have, want = (x.shape[-1 if x.ndim == 3 else 1] for x in (student, teacher))
    if reshape is None and have == want:
        return None
    where, linear = place(student), None
    if have != want:
        linear = nn.Conv2d(have, want, 1, **where) if teacher.ndim == 4 else nn.Linear(have, want, **where)
    return Projector(None, linear, reshape=reshape)


def _reshape(student: Tensor, teacher: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What brings the places of a feature to those of another."""
    ours, theirs = (tuple(x.shape[2:]) if x.ndim == 4 else tuple(x.shape[1:-1]) for x in (student, teacher))
    if student.ndim == teacher.ndim:
        return None if ours == theirs else partial(resized, size=theirs)
    if teacher.ndim == 2:
        return partial(torch.mean, dim=(2, 3) if student.ndim == 4 else 1)
    return partial(as_tokens, length=theirs[0]) if teacher.ndim == 3 else partial(as_map, size=theirs)


def projectors(features: Sequence[tuple[Tensor, Tensor]], names: Sequence[tuple[str, str]]) -> nn.ModuleList:
    """Return a projector for each pair of features, the identity where their shapes are equal already."""
    made = (projector(ours, theirs, names=both) for (ours, theirs), both in zip(features, names, strict=True))
    return nn.ModuleList(nn.Identity() if one is None else one for one in made)
