"""Hold each objective's gradient at a chosen share of the supervised one.

Shapes: K objectives, in their order.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from limbeck.core.errors import RecipeError
from limbeck.core.gather import gathered
from limbeck.core.objective import Term

__all__ = ["Balance", "GradientNorm"]

_NONE = 1e-6
"""A gradient below this share of the supervised one is rounding error, not a direction to be scaled up."""


class GradientNorm(BaseModel):
    """By the norms of their gradients to the student's parameters, measured in every `every`-th forward pass of training, a micro-batch each."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["gradient_norm"] = "gradient_norm"
    every: int = Field(default=20, ge=1)


class Balance(nn.Module):
    """The factors on the objectives' losses: w_s for the supervised one, w_k w_s ||g_s|| / ||g_k|| for any other, so that its weight w_k is its share.

    Norms are of the gradients of unweighted mean losses to the student's parameters, averaged over processes, and hold until they are measured again; weights
    follow their schedules at every step. An objective whose gradient vanishes stays out until the next measurement, and a batch without a supervised gradient,
    or with one that is not finite, leaves the norms as they were.

    Raises:
        RecipeError: no supervised objective, more than one, one without weight, or none beside it.
    """

    def __init__(self, how: GradientNorm, terms: Sequence[Term]) -> None:
        super().__init__()
        said = "balance: gradient_norm holds every objective's gradient at a share of the supervised one's"
        at = [index for index, term in enumerate(terms) if term.name == "supervised"]
        if len(at) != 1:
            raise RecipeError(f"{said}, and there are {len(at) or 'no'} supervised objectives: give one, such as {{kind: supervised, weight: 1}}")
        if terms[at[0]].weight == 0:
            raise RecipeError(f"{said}, and its weight is 0: give it one, such as {{kind: supervised, weight: 1}}")
        if len(terms) == 1:
            raise RecipeError(f"{said}, and there is no other objective: leave balance out")
        self.every = how.every
        self._supervised = at[0]
        self._passes = 0
        self.norms: Tensor
        self.register_buffer("norms", torch.zeros(len(terms)))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._passes)

    def set_extra_state(self, state: Tensor) -> None:
        self._passes = int(state)

    def forward(self, sums: Sequence[Tensor], weights: Sequence[float], count: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the factor on each of `sums`, losses summed over `count` predictions, `[K]`; measure first where that is due."""
        if self.training and torch.is_grad_enabled():
            if self._passes % self.every == 0:
                self._measure(sums, count, parameters)
            self._passes += 1
        norms, mine = self.norms, self._supervised
        given = norms.new_tensor(weights)
        shares = given * given[mine] * norms[mine] / norms
        factors = torch.where(norms > _NONE * norms[mine], shares, torch.zeros_like(shares))
        factors[mine] = given[mine]
        return factors

    def _measure(self, sums: Sequence[Tensor], count: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        with torch.autocast(count.device.type, enabled=False):
            found = torch.stack([_norm(one, parameters) for one in sums]) / count.clamp(min=1)
        found = gathered(found.to(self.norms.dtype)).view(-1, len(sums)).mean(0)
        self.norms.copy_(torch.where(found.isfinite().all() & (found[self._supervised] > 0), found, self.norms))


def _norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of a loss's gradient over all parameters; the graph stays for the step's own backward pass."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
    norms = [torch.linalg.vector_norm(one.float()) for one in gradients if one is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else loss.new_zeros((), dtype=torch.float32)
