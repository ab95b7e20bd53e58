"""A network that makes images out of noise.

Shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from limbeck.core.errors import MismatchError

__all__ = ["USUAL", "Dcgan", "Generator", "check_image_shape"]


class Dcgan(BaseModel):
    """How large a generator is, and where its values end."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["dcgan"] = "dcgan"
    latent: int = Field(default=100, ge=1, description="numbers of noise that an image is made of")
    width: int = Field(default=64, ge=1, description="channels at full size; twice as many below")
    end: Literal["norm", "pixels"] = Field(
        default="norm",
        description="norm: each channel of a batch is brought to mean 0 and deviation 1, as normalized training data have; pixels: within what a pixel can be",
    )


USUAL = Dcgan()
"""The generator of a scheme that is told nothing of it."""


def check_image_shape(in_shape: Sequence[int], who: str) -> tuple[int, int, int]:
    """Return (C, H, W), or refuse examples that are no images."""
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise MismatchError(f"{who} makes images (C, H, W), and the task's examples have the shape {tuple(in_shape)}: take an image task")
    channels, height, width = in_shape
    return channels, height, width


class Generator(nn.Module):
    """Noise `[N, latent]` to images `[N, C, H, W]`: a linear layer to a quarter of the size, two doublings, 3x3 convolutions, batch norm, leaky ReLU, tanh.

    The shape of Radford et al. 2016, arXiv:1511.06434, with resizing in the place of transposed convolutions, as Chen et al. 2019, arXiv:1904.01186, use it.
    `preprocess` is `Facts.preprocess`: what pixels between 0 and 1 become before the teacher sees them.
    """

    def __init__(self, how: Dcgan, in_shape: tuple[int, int, int], preprocess: Mapping[str, Any]) -> None:
        super().__init__()
        channels, height, width = in_shape
        self.latent, self.size, self.end = how.latent, (height, width), how.end
        self.start = (2 * how.width, -(-height // 4), -(-width // 4))
        self.first = nn.Linear(how.latent, self.start[0] * self.start[1] * self.start[2])
        self.norm1 = nn.BatchNorm2d(self.start[0])
        self.conv2 = nn.Conv2d(self.start[0], 2 * how.width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * how.width)
        self.conv3 = nn.Conv2d(2 * how.width, how.width, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(how.width)
        self.last = nn.Conv2d(how.width, channels, 3, padding=1)
        self.centre = nn.BatchNorm2d(channels, affine=False) if how.end == "norm" else nn.Identity()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocess.get("mean", [0.0] * channels)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.get("std", [1.0] * channels)).view(-1, 1, 1), persistent=False)

    def noise(self, count: int) -> Tensor:
        """Draw `[count, latent]` from torch's own generator, which checkpoints keep."""
        return torch.randn(count, self.latent, device=self.mean.device)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm1(self.first(z).view(-1, *self.start))
        x = F.leaky_relu(self.norm2(self.conv2(F.interpolate(x, scale_factor=2))), 0.2)
        x = F.leaky_relu(self.norm3(self.conv3(F.interpolate(x, scale_factor=2))), 0.2)
        x = self.last(x)[..., : self.size[0], : self.size[1]].tanh()
        return self.centre(x) if self.end == "norm" else ((x + 1) / 2 - self.mean) / self.std
