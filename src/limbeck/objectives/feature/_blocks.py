"""What the learnt parts of several feature objectives are made of: a batch norm for any batch, and a bottleneck of convolutions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Norm", "batch_mean", "bottleneck", "place"]


class Norm(nn.BatchNorm2d):
    """Batch norm of maps `[N, D, H, W]`; one value per channel (a batch of one, a map of 1x1) has no variance and is normalised by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() <= input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def place(feature: Tensor) -> dict[str, Any]:
    """Where what is learnt from a feature lives: its device, float32 at least."""
    return {"device": feature.device, "dtype": torch.promote_types(feature.dtype, torch.float32)}


def bottleneck(ours: int, inner: int, theirs: int, **where: Any) -> nn.Sequential:
    """Return 1x1, 3x3 and 1x1 convolutions from `ours` over `inner` to `theirs` channels, batch norm and ReLU between them; a map keeps its size."""
    return nn.Sequential(
        nn.Conv2d(ours, inner, 1, bias=False, **where), Norm(inner, **where), nn.ReLU(),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False, **where), Norm(inner, **where), nn.ReLU(),
        nn.Conv2d(inner, theirs, 1, bias=False, **where),
    )  # fmt: skip


def batch_mean(losses: Tensor) -> Tensor:
    """Return the mean of `losses [N]`, zero where a mask has left none."""
    return losses.sum() / max(len(losses), 1)
