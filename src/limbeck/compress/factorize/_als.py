"""CP by alternating least squares, from several starts.

Carroll and Chang, Psychometrika 35, 1970; Harshman, UCLA Working Papers in Phonetics 16, 1970; Kolda and Bader, "Tensor Decompositions and Applications",
SIAM Review 51, 2009, sec. 3.4.

Shapes: a tensor of d sides n_1 ... n_d; factors [n_k, R].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fit", "composed", "cp"]

_SETTLED, _EXACT, _DAMP = 1e-3, 1e-10, 1e-10


@dataclass(frozen=True)
class Fit:
    """Factors, one `[n_k, R]` for each side, whose columns share their terms' lengths evenly.

    `kept`: the share of the tensor's energy; `spread`: the greatest difference of that share between starts; `swelling`: the energy of the R terms by
    themselves over the tensor's. Far above one, terms cancel each other, and what is trained from there is unstable (Phan et al., "Stable Low-rank Tensor
    Decomposition for Compression of Convolutional Neural Network", ECCV 2020, arXiv:2008.05441).
    """

    factors: tuple[Tensor, ...]
    kept: float
    spread: float
    swelling: float


def composed(factors: Sequence[Tensor]) -> Tensor:
    """Return the tensor `sum_r a_r o b_r o ...` of its factors."""
    made = factors[0]
    for factor in factors[1:]:
        made = made[..., None, :] * factor
    return made.sum(-1)


def cp(tensor: Tensor, rank: int, starts: int = 3, sweeps: int = 100) -> Fit:
    """Return the best of `starts` descents: the first from the tensor's own singular vectors, the others from seeded random factors."""
    energy = float(tensor.square().sum())
    found = [_descent(tensor, _start(tensor, rank, seed), sweeps) for seed in range(starts)]
    kept = [1 - float((tensor - composed(factors)).square().sum()) / energy if energy else 1.0 for factors in found]
    best = max(range(starts), key=lambda one: kept[one])
    lengths = torch.stack([factor.norm(dim=0) for factor in found[best]])
    terms = lengths.prod(0)
    even = tuple(
        factor / length.clamp(min=torch.finfo(length.dtype).tiny) * terms ** (1 / tensor.ndim) for factor, length in zip(found[best], lengths, strict=True)
    )
    return Fit(even, kept[best], max(kept) - min(kept), float(terms.square().sum()) / energy if energy else 1.0)


def _start(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Singular vectors of each unfolding for seed 0, filled up by random columns; random columns otherwise."""
    draw = torch.Generator().manual_seed(seed)
    made: list[Tensor] = []
    for side in range(tensor.ndim):
        matrix = tensor.movedim(side, 0).flatten(1)
        columns = torch.randn(len(matrix), rank, generator=draw, dtype=tensor.dtype)
        if seed == 0:
            own = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
            columns[:, : own.shape[1]] = own
        made.append(columns / columns.norm(dim=0))
    return made


def _descent(tensor: Tensor, factors: list[Tensor], sweeps: int) -> list[Tensor]:
    """Solve for one factor after the other until the error stands still."""
    unfolded = [tensor.movedim(side, 0).flatten(1) for side in range(tensor.ndim)]
    energy, before = float(tensor.square().sum()), math.inf
    product, gram = torch.zeros(()), torch.zeros(())
    for _ in range(sweeps):
        for side, matrix in enumerate(unfolded):
            others = [factor for other, factor in enumerate(factors) if other != side]
            gram = torch.stack([factor.T @ factor for factor in others]).prod(0)
            product = matrix @ _rows(others)
            damp = _DAMP * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
            factors[side] = torch.linalg.solve(gram + damp * torch.eye(len(gram), dtype=gram.dtype), product.T).T
            if side < tensor.ndim - 1:
                length = factors[side].norm(dim=0)
                factors[side] = factors[side] / torch.where(length > 0, length, 1.0)
        last = factors[-1]
        error = energy - 2 * float((product * last).sum()) + float((gram * (last.T @ last)).sum())
        if error <= _EXACT * energy or before - error <= _SETTLED * error:
            break
        before = error
    return factors


def _rows(factors: Sequence[Tensor]) -> Tensor:
    """The products of rows of all factors, the last one's running fastest, `[n_1 n_2 ..., R]` (Khatri and Rao's product)."""
    made = factors[0]
    for factor in factors[1:]:
        made = (made[:, None] * factor).flatten(0, 1)
    return made
