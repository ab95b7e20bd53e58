"""Geometric median: a filter in the midst of the others can be made of them.

He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019, arXiv:1811.00250.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency

from ._asking import finite, parameters_of

__all__ = ["GeometricMedian"]


class GeometricMedian(Saliency):
    """How far a unit lies from all others of its layer: `sum_u' |w_u - w_u'|_2`, least for the one nearest to their geometric median.

    It judges units beside each other, and single weights not at all. The paper compares filters alone, `weighed: filters`, and each layer by itself,
    `scope: local`. It reads no data.
    """

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        """Return the weights themselves: what counts is where the units that they make lie."""
        with torch.no_grad():
            return finite({name: weight.detach().clone() for name, weight in parameters_of(model, names).items()}, "the weight")

    def total(self, contributions: Tensor) -> Tensor:
        apart = contributions.double()
        return torch.stack([(apart - one).norm(dim=1).sum() for one in apart]).to(contributions.dtype)
