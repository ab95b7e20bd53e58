"""Triton: the divergence of whole rows of logits, and its gradient in their place, in one kernel on a GPU.

Tillet et al., "Triton: An Intermediate Language and Compiler for Tiled Neural Network Computations", MAPL 2019. Its interpreter runs the kernel on a CPU
(TRITON_INTERPRET=1 before this is imported), which is how it is tested where there is no GPU.

Shapes: R rows, V vocabulary.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import MissingDependency

__all__ = ["available", "settle"]

KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation")
_BLOCK = 4096
"""Entries that a row's program has at hand at once."""


@cache
def available() -> bool:
    """Return whether Triton is installed: with torch, where that is made for CUDA."""
    return importlib.util.find_spec("triton") is not None


def settle(
    z: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    weights: Tensor | None,
    *,
    kind: str,
    share: float,
    temperature: float,
    hard: float,
    toward: float | None,
    softcap: float | None,
    learns: bool,
) -> Tensor:
    """Return the losses `[R]` of rows of the student's logits `z [R, V]`, float32; with `learns` their gradient overwrites z.

    (1 - hard) T^2 D(p, q) + hard CE(labels, q at 1), times `weights [R]`: D by its name in `kind` and its `share` (beta, alpha), the target of the teacher's
    logits `y [R, V]`, of any float type, which stay; none of them for the cross-entropy alone. A `softcap` that z went through is in the gradient.

    Raises:
        MissingDependency: Triton is not installed.
    """
    if not available():
        raise MissingDependency("triton", "triton", "the kernel for divergences on a GPU")
    from . import _triton_rows

    kernel: Any = _triton_rows.rows
    assert z.dtype == torch.float32 and z.stride(-1) == 1
    count, classes = z.shape
    losses = torch.zeros(count, dtype=torch.float32, device=z.device)
    if not count:
        return losses
    theirs = z if y is None else y if y.stride(-1) == 1 else y.contiguous()
    kernel[(count,)](
        z, theirs, losses if labels is None else labels, losses if weights is None else weights, losses, z.stride(0), theirs.stride(0), classes,
        temperature, hard, 0.0 if toward is None else toward, 1.0 if softcap is None else softcap, share, kind=KINDS.index(kind), taught=y is not None,
        moves=toward is not None, labelled=hard > 0, weighs=weights is not None, capped=softcap is not None, learns=learns,
        block=min(_BLOCK, 1 << max(0, classes - 1).bit_length()), num_warps=8,
    )  # fmt: skip
    return losses
