"""A small convolutional network for small images."""

from torch import Tensor, nn

from ._arguments import check_classes, check_whole, image_channels

__all__ = ["CNN"]


def _stage(channels: int, width: int, *before: nn.Module) -> nn.Sequential:
    stage = nn.Sequential(*before, nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width))
    stage.add_module("act", nn.ReLU())
    return stage


class CNN(nn.Module):
    """Three 3x3 convolutions of widths w, 2w, 2w with batch norm and ReLU, a max-pool before the second and the third, a global average and a linear head.

    On 1x28x28 images of 10 classes, w = 8 has 3,818 parameters and w = 4 has 1,050. Stage ends: `layer1 [N, w, H, W]`, `layer2 [N, 2w, H/2, W/2]`,
    `layer3 [N, 2w, H/4, W/4]`, `pool [N, 2w]`, `head [N, C]`. Before its ReLU a stage is read as `layer1.act:in`.

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
        self.layer1 = _stage(channels, width)
        self.layer2 = _stage(width, 2 * width, nn.MaxPool2d(2))
        self.layer3 = _stage(2 * width, 2 * width, nn.MaxPool2d(2))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        return self.head(self.pool(self.layer3(self.layer2(self.layer1(x)))))
