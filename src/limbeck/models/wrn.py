"""Wide residual networks for small images, of 6n+4 layers.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146, table 1.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ._arguments import check_classes, check_rate, check_whole, image_channels, nearest_depth

__all__ = ["WRN"]


class _Block(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice; where the shape changes, the shortcut is a 1x1 convolution of what the first ReLU gives."""

    def __init__(self, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if (stride, channels) == (1, width) else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act(self.norm1(x))
        inner = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


class WRN(nn.Module):
    """A wide residual network: a 3x3 stem of 16 channels, three stages of n pre-activated blocks with 16k, 32k, 64k channels, global average, linear head.

    At 100 classes WRN-16-2 has 703,284 parameters, WRN-40-1 569,780, WRN-40-2 2,255,156. Stage ends: `layer1 [N, 16k, H, W]`, `layer2 [N, 32k, H/2, W/2]`,
    `layer3 [N, 64k, H/4, W/4]`, before the batch norm and ReLU of what follows; `norm`, the last of these; `pool [N, 64k]`, `head [N, C]`. What enters
    that ReLU, normalised, is read as `layer2.0.act:in` for layer1, `layer3.0.act:in` for layer2 and `norm.act:in` for layer3.

    Args:
        depth: layers with weights, 6n+4: 10, 16, 22, 28, 40.
        width: k, how many times the 16, 32 and 64 channels of the stages.
        dropout: share of activations dropped between a block's two convolutions in training; 0 puts no dropout layer.

    Raises:
        MismatchError: examples that are no images, or smaller than 4x4.
        RecipeError: a depth that is not 6n+4, a width below one, or a rate outside [0, 1).
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, depth: int = 16, width: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        check_classes("WRN", classes)
        blocks = nearest_depth(depth, 4)
        check_whole("width", width)
        check_rate("dropout", dropout)
        channels = image_channels("WRN", in_shape, least=4)
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.layer1 = self._stage(blocks, 16, 16 * width, 1, dropout)
        self.layer2 = self._stage(blocks, 16 * width, 32 * width, 2, dropout)
        self.layer3 = self._stage(blocks, 32 * width, 64 * width, 2, dropout)
        self.norm = nn.Sequential(nn.BatchNorm2d(64 * width))
        self.norm.add_module("act", nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def _stage(blocks: int, channels: int, width: int, stride: int, dropout: float) -> nn.Sequential:
        return nn.Sequential(_Block(channels, width, stride, dropout), *(_Block(width, width, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        return self.head(self.pool(self.norm(self.layer3(self.layer2(self.layer1(self.stem(x)))))))
