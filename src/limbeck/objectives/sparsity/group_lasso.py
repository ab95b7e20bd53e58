"""Group lasso: whole channels, or whole layers, go to zero together.

Yuan and Lin, "Model Selection and Estimation in Regression with Grouped Variables", Journal of the Royal Statistical Society B 2006; Wen et al., "Learning
Structured Sparsity in Deep Neural Networks", NIPS 2016, arXiv:1608.03665, sec. 3.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32

from ._weights import Layers, Weighed, by_input, by_output

__all__ = ["GroupLasso", "group_lasso_loss"]


def group_lasso_loss(weights: Tensor, *, scaled: bool = True) -> Tensor:
    """Return sum_g sqrt(K) ||w_g||_2 over the rows w_g of K weights, the square root left out where not `scaled`.

    Weights `[G, K]` give a scalar, in float32 at least. At w_g = 0 the gradient is zero, one of the norm's subgradients.

    Raises:
        MismatchError: weights that are not a row for each group.

    >>> import torch
    >>> group_lasso_loss(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor(10.)
    """
    if weights.ndim != 2:
        raise MismatchError(f"group lasso takes a row of weights for each group, [G, K], not {list(weights.shape)}")
    norms = torch.linalg.vector_norm(at_least_float32(weights), dim=1).sum()
    return norms * weights.shape[1] ** 0.5 if scaled else norms


class GroupLasso(Weighed):
    """Penalise the norms of groups of weights, sum_g sqrt(K_g) ||w_g||_2, so that groups of them go to zero as one: channels that can then be cut out.

    Wen et al. 2016, arXiv:1608.03665, sec. 3, over filters, channels or layers; the factor sqrt(K_g), K_g weights in group g, is that of Yuan & Lin 2006, by
    which large groups and small ones are judged alike (the former paper has none). `weight` is lambda. Gradient steps bring a group near zero, and seldom to
    it: what is near is cut by a surgery, such as prune.channels by magnitude. It reads no example.

    Args:
        groups: what goes together, the weights of an output channel (output), of an input channel (input), or of the whole layer (layer).
        layers: paths of modules whose weights are penalised, with all inside them; auto takes every linear, convolutional, attention and recurrent layer.
        scaled: whether a group's norm is multiplied by the square root of its size.

    Raises:
        RecipeError: an empty list of layers.
        MismatchError: a layer without weights.

    Example:
        {kind: sparsity.group_lasso, groups: output, layers: [head], weight: 0.0001}
    """

    def __init__(self, *, groups: Literal["output", "input", "layer"] = "output", layers: Layers = "auto", scaled: bool = True) -> None:
        super().__init__(layers)
        check_choice(self, "groups", groups, ("output", "input", "layer"))
        self.groups: Literal["output", "input", "layer"] = groups
        self.scaled = scaled

    def penalty(self, layer: nn.Module, weight: Tensor) -> Tensor:
        if self.groups == "layer":
            rows = weight.flatten()[None]
        else:
            rows = by_output(layer, weight) if self.groups == "output" else by_input(layer, weight)
        return group_lasso_loss(rows, scaled=self.scaled)
