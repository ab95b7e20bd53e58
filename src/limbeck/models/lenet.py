"""The convolutional network that read digits first.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE 1998, fig. 2.
"""

import math

from torch import Tensor, nn

from limbeck.core.errors import RecipeError

from ._arguments import check_classes, image_channels

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """Two 5x5 convolutions of 6w and 16w channels, each with a max-pool behind it, hidden layers of 120w and 84w units, and a linear head; ReLU throughout.

    The network on which data-free distillation is reported on MNIST, with w = 1/2 as its student. Its head sees where things are: what a global average cannot
    tell apart, it can. Both convolutions keep the size by padding, so that images may be as small as 4x4. On 1x28x28 images of 10 classes it has 107,786
    parameters, w = 1/2 27,258.

    Stage ends: `layer1 [N, 6w, H/2, W/2]`, `layer2 [N, 16w, H/4, W/4]`, `layer3 [N, 120w]`, `layer4 [N, 84w]`, `head [N, C]`.

    Args:
        width: w, by which 6, 16, 120 and 84 are multiplied, rounded to a whole number of at least 1.
        norm: batch norm before each ReLU, whose running statistics `inversion` reads.

    Raises:
        MismatchError: examples that are no images, or smaller than 4x4.
        RecipeError: a width that is zero, negative or not finite.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, width: float = 1.0, norm: bool = False) -> None:
        super().__init__()
        check_classes("LeNet", classes)
        channels = image_channels("LeNet", in_shape, least=4)
        if not (math.isfinite(width) and width > 0):
            raise RecipeError(f"width is {width:g}; it must be a finite number above zero")
        first, second, third, fourth = (max(1, round(width * units)) for units in (6, 16, 120, 84))
        flat = second * (in_shape[1] // 4) * (in_shape[2] // 4)
        norms = [nn.BatchNorm2d(first), nn.BatchNorm2d(second), nn.BatchNorm1d(third), nn.BatchNorm1d(fourth)] if norm else [nn.Identity()] * 4
        self.layer1 = nn.Sequential(nn.Conv2d(channels, first, 5, padding=2), norms[0], nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(first, second, 5, padding=2), norms[1], nn.ReLU(), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(nn.Flatten(), nn.Linear(flat, third), norms[2], nn.ReLU())
        self.layer4 = nn.Sequential(nn.Linear(third, fourth), norms[3], nn.ReLU())
        self.head = nn.Linear(fourth, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        return self.head(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
