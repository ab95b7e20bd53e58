"""What a teacher's batch norms have kept of its data, and how far made images are from it.

Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795, eq. 4.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.core.errors import MismatchError

__all__ = ["running_norms", "statistics_gap", "whole_gap"]

_SMALL = 1e-5


def running_norms(model: nn.Module, who: str) -> dict[str, _BatchNorm]:
    """Return a model's batch norms that keep running statistics, by where their inputs are read.

    Raises:
        MismatchError: there is none.
    """
    found = {f"{path}:in": module for path, module in model.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is not None}
    if not found:
        raise MismatchError(
            f"{who} reads the running statistics of the teacher's batch norms, and {type(model).__name__} has none: "
            "take a teacher with batch norm, or a data-free scheme without this term (dafl, dfad, zskt)"
        )
    return found


def statistics_gap(x: Tensor, mean: Tensor, variance: Tensor, *, relative: bool = False) -> Tensor:
    """Return ||m - mean||_2 + ||v - variance||_2, m and v the mean and variance of each of C channels of `x [N, C, ...]` over all else (eq. 4).

    `relative`: (||(m - mean) / sqrt(variance)||_2 + ||v / variance - 1||_2) / sqrt(C), which weighs layers of large and of small activations alike.
    """
    over = [axis for axis in range(x.ndim) if axis != 1]
    found, middle = torch.var_mean(x.float(), over, correction=0)
    if not relative:
        return torch.linalg.vector_norm(middle - mean) + torch.linalg.vector_norm(found - variance)
    held = variance + _SMALL
    return (torch.linalg.vector_norm((middle - mean) / held.sqrt()) + torch.linalg.vector_norm(found / held - 1)) / len(held) ** 0.5


def whole_gap(features: Mapping[str, Tensor], norms: Mapping[str, _BatchNorm], *, relative: bool) -> Tensor:
    """Return the sum of `statistics_gap` over all norms, of what was read where each says."""
    gaps = []
    for path, norm in norms.items():
        assert norm.running_mean is not None and norm.running_var is not None, "norms without running statistics are not read"
        gaps.append(statistics_gap(features[path], norm.running_mean, norm.running_var, relative=relative))
    return torch.stack(gaps).sum()
