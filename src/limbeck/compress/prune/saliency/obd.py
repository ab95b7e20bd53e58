"""Optimal Brain Damage: half the curvature at a weight times its square.

LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989, sec. 2.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.compress.prune._curvature import diagonal, exact_diagonal, hutchinson_diagonal
from limbeck.core.errors import RecipeError

from ._asking import check_count, finite, parameters_of

__all__ = ["Hutchinson", "Obd"]


class Hutchinson(BaseModel):
    """Estimate the Hessian's diagonal from `draws` vectors of signs for each batch: for nets of any size."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["hutchinson"] = "hutchinson"
    draws: int = Field(default=16, ge=1)


class Obd(Saliency):
    """What the loss rises by, to second order, when a weight at a minimum is set to zero: `h_kk w_k^2 / 2`; several cost their sum (no cross terms).

    `h_kk` is the true diagonal of a matrix, not its approximation layer by layer:

    `gauss_newton`: that of `J^T (d^2 loss / dz^2) J`, exactly, by one backward pass for each logit; never negative. At a net that fits its data it is the
    Hessian's; it is what the paper takes (its Levenberg-Marquardt form of second-order back-propagation leaves the same term out).
    `exact`: the Hessian's own, by differentiating twice, for up to 20,000 weights; where it is negative the cost is told as zero.
    `{kind: hutchinson, draws: 16}`: an unbiased estimate of the Hessian's, for logits too many for the first and weights too many for the second.

    Args:
        hessian: gauss_newton, exact, or {kind: hutchinson, draws}.
        examples: training examples that are read.

    Raises:
        RecipeError: a hessian that is not one of these, or fewer than one example.
    """

    def __init__(self, *, hessian: Literal["gauss_newton", "exact"] | Hutchinson = "gauss_newton", examples: int = 1000) -> None:
        if not isinstance(hessian, Hutchinson) and hessian not in ("gauss_newton", "exact"):
            raise RecipeError(f"hessian of obd is {hessian!r}; it is gauss_newton, exact or {{kind: hutchinson, draws: 16}}")
        self.hessian, self.examples = hessian, check_count("examples", examples)

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        if isinstance(self.hessian, Hutchinson):
            found = hutchinson_diagonal(model, names, bench, examples=self.examples, draws=self.hessian.draws)
        elif self.hessian == "exact":
            found = exact_diagonal(model, names, bench, examples=self.examples)
        else:
            found = diagonal(model, names, bench, examples=self.examples, curvature="gauss_newton")
        with torch.no_grad():
            weights = parameters_of(model, names)
            return finite({name: curvature * weights[name].detach().square() / 2 for name, curvature in found.items()}, "the saliency of OBD")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1).clamp(min=0)
