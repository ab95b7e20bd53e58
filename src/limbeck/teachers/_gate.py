"""Weights that learn: one for each teacher of an ensemble, by the gradient of a loss of their mean."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.core.gather import gathered

__all__ = ["Gate"]


class Gate(nn.Module):
    """Weights w = softmax(g): g <- g - rate dL/dg once a step, L the mean loss of what was heard since the last; the same in every process.

    Plain descent on the logarithms: no weight leaves (0, 1), and the step of a cross-entropy, rate times the mean of responsibility minus weight, is never
    longer than `rate`. Everything is a buffer, so that checkpoints hold it and no optimizer does.
    """

    def __init__(self, count: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.logarithms: Tensor
        self.gradient: Tensor
        self.heard: Tensor
        self.register_buffer("logarithms", torch.zeros(count))
        self.register_buffer("gradient", torch.zeros(count))
        self.register_buffer("heard", torch.zeros(()))

    @property
    def log_weights(self) -> Tensor:
        """The logarithms of the weights, `[M]`."""
        return self.logarithms.log_softmax(0)

    @property
    def weights(self) -> Tensor:
        """The weights, `[M]`."""
        return self.log_weights.exp()

    def hear(self, losses: Callable[[Tensor], Tensor]) -> None:
        """Take in the losses `[...]` that a mean costs, told of the logarithms of its weights `[M]`."""
        with torch.enable_grad():
            told = self.logarithms.detach().clone().requires_grad_()
            found = losses(told.log_softmax(0))
            (gradient,) = torch.autograd.grad(found.sum(), told)
        self.gradient += gradient
        self.heard += found.numel()

    @torch.no_grad()
    def step(self) -> None:
        """Descend by what was heard; nothing heard changes nothing."""
        told = gathered(torch.cat([self.gradient, self.heard[None]])).view(-1, len(self.gradient) + 1).sum(0)
        self.logarithms -= self.rate * told[:-1] / told[-1].clamp(min=1)
        self.gradient.zero_()
        self.heard.zero_()
