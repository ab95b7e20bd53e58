"""The perceptron on which pruning is reported on MNIST.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE 1998.
"""

import math

from torch import Tensor, nn

from ._arguments import check_classes

__all__ = ["LeNet300100"]


class LeNet300100(nn.Module):
    """Linear layers of 300 and 100 units with ReLU, and a linear head: LeNet-300-100.

    On 28x28 images of 10 classes it has 266,610 parameters, as in Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626. `mlp` has widths of one's own.

    Stage ends: `layer1 [N, 300]`, `layer2 [N, 100]`, `head [N, C]`.

    Raises:
        MismatchError: no class.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        check_classes("LeNet-300-100", classes)
        self.layer1 = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), 300), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(300, 100), nn.ReLU())
        self.head = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, ...]` to logits `[N, C]`."""
        return self.head(self.layer2(self.layer1(x)))
