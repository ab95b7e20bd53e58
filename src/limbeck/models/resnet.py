"""Residual networks for small images, of 6n+2 layers.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, sec. 4.2.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import RecipeError

from ._arguments import check_classes, check_whole, image_channels, nearest_depth

__all__ = ["ResNet"]


class _Pad(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that are new, half on either side."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = (width - channels) // 2, width - channels - (width - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (stride, channels) != (1, width):
            projection = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            self.shortcut = projection if shortcut == "B" else _Pad(channels, width, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images: a 3x3 stem, three stages of n two-layer blocks at full, half and quarter size, a global average and a linear head.

    Two published families share this shape. He et al. 2016: stem and stages of 16, 16, 32, 64 channels, option A shortcuts; at 10 classes resnet20 has 269,722
    parameters, 32: 464,154, 44: 658,586, 56: 853,018, 110: 1,727,962. Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699,
    brought wide ones with a stem of 32 channels and option B shortcuts: resnet8x4 is `depth: 8, width: 4` (1,233,540 parameters at 100 classes), resnet32x4 is
    `depth: 32, width: 4` (7,433,860). Left alone, `shortcut` and `stem` follow the first family at width 1 and the second above. The narrow networks of the
    second family have option B too: `shortcut: B`.

    Stage ends: `layer1 [N, 16w, H, W]`, `layer2 [N, 32w, H/2, W/2]`, `layer3 [N, 64w, H/4, W/4]`, after the ReLU; `pool [N, 64w]`, `head [N, C]`. What enters
    the ReLU that ends block k of a stage, k from 0, is read as `layer1.k.act:in`; a stage before its ReLU is that of its last block.

    Args:
        depth: layers with weights, 6n+2: 8, 14, 20, 32, 44, 56, 110.
        width: how many times the 16, 32 and 64 channels of the stages.
        shortcut: how a shortcut meets more channels: A adds channels of zeros, B projects by a 1x1 convolution; None is A at width 1 and B above.
        stem: channels of the first convolution; None is 16 at width 1 and 32 above.

    Raises:
        MismatchError: examples that are no images, or smaller than 4x4.
        RecipeError: a depth that is not 6n+2, a width or a stem below one, or a stem that option A would have to cut.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        classes: int,
        *,
        depth: int = 20,
        width: int = 1,
        shortcut: Literal["A", "B"] | None = None,
        stem: int | None = None,
    ) -> None:
        super().__init__()
        check_classes("ResNet", classes)
        blocks = nearest_depth(depth, 2)
        check_whole("width", width)
        channels = image_channels("ResNet", in_shape, least=4)
        shortcut = shortcut or ("A" if width == 1 else "B")
        stem = (16 if width == 1 else 32) if stem is None else stem
        check_whole("stem", stem)
        if shortcut == "A" and stem > 16 * width:
            raise RecipeError(f"shortcut A adds channels and cannot cut a stem of {stem} to {16 * width}: use a stem of {16 * width}, or shortcut B")
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.layer1 = self._stage(blocks, stem, 16 * width, 1, shortcut)
        self.layer2 = self._stage(blocks, 16 * width, 32 * width, 2, shortcut)
        self.layer3 = self._stage(blocks, 32 * width, 64 * width, 2, shortcut)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(blocks: int, channels: int, width: int, stride: int, shortcut: Literal["A", "B"]) -> nn.Sequential:
        return nn.Sequential(_Block(channels, width, stride, shortcut), *(_Block(width, width, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        return self.head(self.pool(self.layer3(self.layer2(self.layer1(self.stem(x))))))
