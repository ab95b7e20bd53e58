"""Taylor: how much the loss moves, to first order, when weights go.

Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv:1906.10771, sec. 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency

from ._asking import batches, check_count, finite, gradients, undisturbed

__all__ = ["Taylor"]


class Taylor(Saliency):
    """The first-order change of the loss: `(g w)^2`, g the gradient of a mini-batch's mean loss, averaged over mini-batches; several cost `sum_s (g_s w_s)^2`.

    With `joint` it is what the paper's gates measure: `(sum_s g_s w_s)^2`, where contributions of opposite sign make up for each other, g being the mean
    gradient over all examples; contributions are then signed. Where training has come to rest that mean is near zero, and so are they.

    Args:
        examples: training examples that are read.
        batch_size: examples of one mini-batch; the smaller, the more the squares tell of a net at rest.
        joint: let the weights of a unit make up for each other.

    Raises:
        RecipeError: fewer than one example, or a batch of none.
    """

    def __init__(self, *, examples: int = 1000, batch_size: int = 16, joint: bool = False) -> None:
        self.examples = check_count("examples", examples)
        self.batch_size = check_count("batch_size", batch_size)
        self.joint = joint

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        with undisturbed(model, names) as parameters:
            sums, weight = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}, 0
            for batch in batches(bench, self.examples, batch_size=self.batch_size):
                losses = bench.losses(model, batch)
                moved = gradients(losses.sum() if self.joint else losses.mean(), parameters)
                weight += losses.numel() if self.joint else 1
                with torch.no_grad():
                    for name, gradient in moved.items():
                        change = gradient * parameters[name]
                        sums[name] += change if self.joint else change.square()
            found = {name: total / weight if self.joint else (total / weight).sqrt() for name, total in sums.items()}
        return finite(found, "the Taylor saliency")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1).square() if self.joint else contributions.square().sum(1)
