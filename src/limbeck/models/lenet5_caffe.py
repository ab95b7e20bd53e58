"""The convolutional network on which pruning is reported on MNIST: LeNet-5 as Caffe has it.

Jia et al., "Caffe: Convolutional Architecture for Fast Feature Embedding", ACM Multimedia 2014, arXiv:1408.5093, whose example it is; that of 1998 is `lenet`.
"""

from torch import Tensor, nn

from ._arguments import check_classes, image_channels

__all__ = ["LeNet5Caffe"]

_LEAST = 16
"""Pixels of a side that two 5x5 convolutions without padding, each with a pool behind it, leave one of."""


class LeNet5Caffe(nn.Module):
    """5x5 convolutions of 20 and 50 channels without padding, a max-pool behind each and no nonlinearity but that, a layer of 500 with ReLU, and a linear head.

    On 1x28x28 images of 10 classes it has 431,080 parameters, as in Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626. A side of fewer than 16 pixels gets a frame of zeros up to 16.

    Stage ends: `layer1 [N, 20, (H-4)/2, (W-4)/2]`, `layer2 [N, 50, (H-12)/4, (W-12)/4]`, `layer3 [N, 500]`, `head [N, C]`; fractions are rounded down.

    Raises:
        MismatchError: examples that are no images; no class.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        check_classes("LeNet-5", classes)
        channels = image_channels("LeNet-5", in_shape, least=1)
        lacking = [max(0, _LEAST - side) for side in in_shape[1:]]
        frame = [nn.ZeroPad2d((lacking[1] // 2, -(-lacking[1] // 2), lacking[0] // 2, -(-lacking[0] // 2)))] if any(lacking) else []
        height, width = ((max(side, _LEAST) - 4) // 2 for side in in_shape[1:])
        self.layer1 = nn.Sequential(*frame, nn.Conv2d(channels, 20, 5), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(nn.Flatten(), nn.Linear(50 * ((height - 4) // 2) * ((width - 4) // 2), 500), nn.ReLU())
        self.head = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        return self.head(self.layer3(self.layer2(self.layer1(x))))
