"""Committee and parity machines: the two-layer networks of the statistical mechanics of learning.

Saad and Solla, "On-line learning in soft committee machines", Physical Review E 52(4), 1995.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import RecipeError

from ._arguments import check_classes, check_whole

__all__ = ["Machine"]


class _Units(nn.Module):
    """erf(J x / sqrt(2 F)) for each of C machines' K units: `[N, F]` to `[N, C, K]`."""

    def __init__(self, inputs: int, machines: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(machines, units, inputs))

    def forward(self, x: Tensor) -> Tensor:
        fields = torch.einsum("nf,cuf->ncu", x.flatten(1), self.weight) / math.sqrt(self.weight.shape[2])
        return torch.erf(fields / math.sqrt(2))


class _Combined(nn.Module):
    """The sum of a committee's units, or the product of a parity machine's: `[N, C, K]` to `[N, C]`."""

    def __init__(self, combine: str) -> None:
        super().__init__()
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(2) if self.combine == "committee" else x.prod(2)


class Machine(nn.Module):
    """A soft committee machine, sum_k g(x_k), or a soft parity machine, prod_k g(x_k), for each number that is predicted.

    `x_k = J_k . xi / sqrt(F)`, `g(x) = erf(x / sqrt 2)`, F the inputs' size; on inputs of mean 0 and variance 1 the fields x_k have the covariance
    `Q = J J^T / F`. Weights begin as standard normal numbers. Stage ends: `layer1 [N, C, K]`, the units; `head [N, C]`.
    Saad and Solla 1995, eq. 1; for parity machines Engel and Van den Broeck, "Statistical Mechanics of Learning", Cambridge 2001.

    Args:
        units: K.
        combine: committee, the sum of the units, or parity, their product.

    Raises:
        RecipeError: fewer units than one, or another way to combine them.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, units: int = 2, combine: Literal["committee", "parity"] = "committee") -> None:
        super().__init__()
        check_classes("Machine", classes)
        check_whole("units", units)
        if combine not in ("committee", "parity"):
            raise RecipeError(f"combine is {combine!r} for models.machine; it is 'committee' or 'parity'")
        self.layer1 = _Units(math.prod(in_shape), classes, units)
        self.head = _Combined(combine)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, ...]` to numbers `[N, C]`."""
        return self.head(self.layer1(x))
