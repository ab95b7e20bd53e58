"""How the rows of a matrix lie to each other, without a temporary of N x N x D.

Shapes: N examples, D elements of a feature.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.objectives._precision import at_least_float32

__all__ = ["centred_gram", "flat", "gram", "squared_distances", "unit_gram"]


def flat(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both features as matrices `[N, D]` in float32 at least, the teacher's without a gradient.

    Raises:
        MismatchError: other numbers of examples, or features without an axis beside that of the examples.
    """
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise MismatchError(
            f"the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}: relations want [N, ...] of the same N examples"
        )
    return at_least_float32(student).flatten(1), at_least_float32(teacher.detach()).flatten(1)


def gram(x: Tensor) -> Tensor:
    """Return the inner products `[N, N]` of the rows of `x [N, D]`, in its own precision whatever autocast wants."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.T


def unit_gram(x: Tensor) -> Tensor:
    """Return the cosines `[N, N]` of the rows of `x [N, D]`; a row of zeros has cosine zero with every row."""
    return gram(F.normalize(x, dim=1))


def centred_gram(x: Tensor) -> Tensor:
    """Return the inner products `[N, N]` of the rows of `x` after their mean is taken off, in float64 (float32 where the device has no float64).

    Differences of its elements are distances: what cancels in them is far below float32's own rounding.
    """
    wide = x if x.device.type == "mps" else x.double()
    return gram(wide - wide.mean(0)) if len(x) else gram(wide)


def squared_distances(products: Tensor) -> Tensor:
    """Return `||x_i - x_j||^2` `[N, N]` from `centred_gram`'s products; zero, with no gradient, where the two cannot be told apart."""
    squares = products.diagonal()
    sums = squares[:, None] + squares[None]
    found = sums - 2 * products
    return torch.where(found > 512 * torch.finfo(products.dtype).eps * sums, found, 0.0)
