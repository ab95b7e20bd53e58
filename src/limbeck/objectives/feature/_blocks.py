"""What the learnt parts of several feature objectives are made of: a batch norm for any batch, and a bottleneck of convolutions."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Norm", "batch_mean", "bottleneck"]


class Norm(nn.BatchNorm2d):
    """Batch norm of maps `[N, D, H, W]` or vectors `[N, D]`; one value per channel has no variance and is normalised by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() <= input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input) if input.ndim == 4 else super().forward(input[:, :, None, None]).flatten(1)


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
