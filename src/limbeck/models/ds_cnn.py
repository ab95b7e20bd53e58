"""A small keyword network: depthwise separable convolutions on a spectrogram.

Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017, arXiv:1711.07128, sec. 3.5.
"""

from torch import Tensor, nn

from ._arguments import check_classes, check_whole, image_channels

__all__ = ["DSCNN"]


def _normed(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


class DSCNN(nn.Module):
    """A keyword network: a 4x10 convolution (mels x frames) of stride 2, `blocks` depthwise 3x3 and pointwise 1x1 pairs, a global average, a linear head.

    The paper's small network has 64 channels and 4 pairs, its medium 172, its large 276 and 5 pairs (it strides the middle and the large one otherwise). For
    log-mel spectrograms `[N, 1, mels, frames]`, or any images of at least 4x4. Stage ends: `stem [N, w, H/2, W/2]`, `layer1` ... `layerK` of the same shape,
    `pool [N, w]`, `head [N, C]`.

    Args:
        width: channels throughout.
        blocks: depthwise and pointwise pairs.

    Raises:
        MismatchError: examples that are no spectrograms, or smaller than 4x4.
        RecipeError: a width or a count below one.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        check_classes("DSCNN", classes)
        check_whole("width", width)
        check_whole("blocks", blocks)
        channels = image_channels("DSCNN", in_shape, least=4)
        self.stem = _normed(nn.Conv2d(channels, width, (4, 10), stride=2, padding=(1, 4), bias=False))
        for number in range(1, blocks + 1):
            depthwise = _normed(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False))
            pointwise = _normed(nn.Conv2d(width, width, 1, bias=False))
            self.add_module(f"layer{number}", nn.Sequential(depthwise, pointwise))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Spectrograms `[N, channels, mels, frames]` to logits `[N, C]`."""
        for layer in self.children():
            x = layer(x)
        return x
