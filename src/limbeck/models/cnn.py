"""A small convolutional network for small images."""

from torch import Tensor, nn

from ._arguments import check_classes, check_whole, image_channels

__all__ = ["CNN"]


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]


class CNN(nn.Module):
    """Three 3x3 convolutions of widths w, 2w, 2w with batch norm and ReLU, a max-pool before the second and the third, a global average and a linear head.

    On 1x28x28 images of 10 classes, w = 8 has 3,818 parameters and w = 4 has 1,050. Stage ends: `layer1 [N, w, H, W]`, `layer2 [N, 2w, H/2, W/2]`,
    `layer3 [N, 2w, H/4, W/4]`, `pool [N, 2w]`, `head [N, C]`.

    Args:
        width: channels of the first convolution; the others have twice as many.

    Raises:
        MismatchError: examples that are no images, or smaller than 4x4.
        RecipeError: a width below one.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, width: int = 32) -> None:
        super().__init__()
        check_classes("CNN", classes)
        check_whole("width", width)
        channels = image_channels("CNN", in_shape, least=4)
        self.layer1 = nn.Sequential(*_convolution(channels, width))
        self.layer2 = nn.Sequential(nn.MaxPool2d(2), *_convolution(width, 2 * width))
        self.layer3 = nn.Sequential(nn.MaxPool2d(2), *_convolution(2 * width, 2 * width))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        return self.head(self.pool(self.layer3(self.layer2(self.layer1(x)))))
