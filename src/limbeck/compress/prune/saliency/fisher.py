"""Fisher: Optimal Brain Damage with the squared gradient in the Hessian's place.

Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, arXiv:1801.05787, sec. 2.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.compress.prune._curvature import diagonal

from ._asking import check_count, finite, parameters_of

__all__ = ["Fisher"]


class Fisher(Saliency):
    """`w_k^2 / 2N sum_n g_nk^2`, g_n the gradient of example n's own loss (the empirical Fisher information); several cost their sum.

    One backward pass, however many logits. It is the Hessian's diagonal where the labels are distributed as the model says; a net that is sure of labels that
    are right has next to none of it, which scales all scores alike and makes examples that it gets wrong count most.

    Args:
        examples: training examples that are read.

    Raises:
        RecipeError: fewer than one example.
    """

    def __init__(self, *, examples: int = 1000) -> None:
        self.examples = check_count("examples", examples)

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        found = diagonal(model, names, bench, examples=self.examples, curvature="empirical")
        with torch.no_grad():
            weights = parameters_of(model, names)
            return finite({name: curvature * weights[name].detach().square() / 2 for name, curvature in found.items()}, "the Fisher saliency")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1)
