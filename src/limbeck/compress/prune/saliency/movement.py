"""Movement: weights that training drives towards zero go first.

Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv:2005.07683, sec. 3.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Batch

from ._asking import check_count, finite, gradients, undisturbed

__all__ = ["Movement"]


class Movement(Saliency):
    """How far training moves a weight away from zero: `S = -sum_t (dL/dw)_t w_t` over steps of SGD, signed; the lowest are those that move towards zero.

    The steps are taken on a copy of the model, nothing being masked on the way; the model stays as it is. It says something of a net that is being taught a
    new task: where training has come to rest there is no movement, only the noise of mini-batches. Scores that are learnt while the mask is in force, as the
    paper does on the way to its last sparsity, are `prune.gradual`'s. Several cost `exp(asinh(sum))`, which keeps the order and is above zero.

    Args:
        steps: steps of SGD.
        lr: their rate.
        batch_size: examples of one step.

    Raises:
        RecipeError: no step, a batch of none, or a rate that is not above zero.
    """

    def __init__(self, *, steps: int = 100, lr: float = 0.01, batch_size: int = 64) -> None:
        if not 0 < lr < float("inf"):
            raise RecipeError(f"lr of movement must be a finite number above zero, not {lr}")
        self.steps, self.lr, self.batch_size = check_count("steps", steps), lr, check_count("batch_size", batch_size)

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        moving = copy.deepcopy(model)
        others = [name for name, parameter in moving.named_parameters() if parameter.requires_grad and name not in names]
        with undisturbed(moving, [*names, *others]) as parameters:
            scores = {name: torch.zeros_like(parameters[name], requires_grad=False) for name in names}
            for batch in self._batches(bench):
                slopes = gradients(bench.losses(moving, batch).mean(), parameters, needed=names)
                with torch.no_grad():
                    for name in names:
                        scores[name] -= slopes[name] * parameters[name]
                    for name, slope in slopes.items():
                        parameters[name].sub_(self.lr * slope)
        return finite(scores, "the movement")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.double().sum(1).asinh().exp()

    def _batches(self, bench: Bench) -> Iterator[Batch]:
        """Give one batch for each step, the training split again and again."""
        given = 0
        while given < self.steps:
            before = given
            for batch in bench.batches((self.steps - given) * self.batch_size, batch_size=self.batch_size):
                if given < self.steps:
                    yield batch
                    given += 1
            if given == before:
                raise DataError("the training split gave no batch to measure movement on")
