"""Optimal Brain Surgeon: what a weight costs when the others make up for it, and how they do.

Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, eq. 5; in blocks, as Singh and Alistarh, "WoodFisher:
Efficient Second-Order Approximation for Neural Network Compression", NeurIPS 2020, arXiv:2004.14340.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Compensating
from limbeck.compress.prune._curvature import Block, Curvature, blocks
from limbeck.core.errors import RecipeError

from ._asking import check_count, finite, parameters_of

__all__ = ["Obs"]


class Obs(Compensating):
    """`w_q^2 / (2 [H^-1]_qq)`, and the update `-w_q / [H^-1]_qq H^-1 e_q` of the weights that stay; several that go are made up for together.

    H is the damped Gauss-Newton matrix (or empirical Fisher matrix) among the weights that are not zero, so that zeros stay zero: of the whole net where it
    has `block` weights or fewer, else in blocks of whole rows of a layer, which take no account of each other. Memory: `block` numbers for each weight.
    Several weights cost their sum.

    Two weights that do the same work are cheap each by itself and dear together. So by default a weight is told what it costs when its turn comes, the cheaper
    ones being gone and made up for (the order of the paper's loop, without a new
    curvature for each deletion); with `order: alone` each is told eq. 5.

    Args:
        examples: training examples that are read.
        curvature: gauss_newton (a backward pass for each logit), or empirical (one).
        block: the most weights of one block.
        damping: what is added to the diagonal, as a share of its mean.
        order: in_turn, or alone: what a weight costs after the cheaper ones, or by itself.

    Raises:
        RecipeError: a count below one, another curvature, or a damping that is not above zero.
    """

    def __init__(
        self,
        *,
        examples: int = 1000,
        curvature: Curvature = "gauss_newton",
        block: int = 256,
        damping: float = 1e-2,
        order: Literal["in_turn", "alone"] = "in_turn",
    ) -> None:
        if curvature not in ("gauss_newton", "empirical"):
            raise RecipeError(f"curvature of obs is {curvature!r}; it is gauss_newton or empirical")
        if not (math.isfinite(damping) and damping > 0):
            raise RecipeError(f"damping of obs must be a finite number above zero, not {damping}: without it the matrix may have no inverse")
        self.examples, self.block = check_count("examples", examples), check_count("block", block)
        self.curvature: Curvature = curvature
        if order not in ("in_turn", "alone"):
            raise RecipeError(f"order of obs is {order!r}; it is in_turn or alone")
        self.damping, self.order = damping, order
        self._known: tuple[dict[str, Tensor], Bench, list[Block]] | None = None

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        weights = parameters_of(model, names)
        found = {name: torch.zeros_like(weight, dtype=torch.float64, requires_grad=False) for name, weight in weights.items()}
        for block in self._blocks(model, names, bench):
            block.put((block.alone if self.order == "alone" else block.in_turn)(block.take(weights)), found)
        return finite(found, "the saliency of OBS")

    def compensate(self, model: nn.Module, removed: Mapping[str, Tensor], bench: Bench) -> None:
        weights = parameters_of(model, removed)
        for block in self._blocks(model, list(removed), bench):
            goes = block.take(removed).bool()
            if goes.any():
                block.put(block.without(block.take(weights), goes), weights)
        self._known = None

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1)

    def _blocks(self, model: nn.Module, names: Sequence[str], bench: Bench) -> list[Block]:
        """Return the curvature of the model as it is: that of the last pass, if nothing has changed since."""
        now = {name: weight.detach() for name, weight in parameters_of(model, names).items()}
        if self._known is not None:
            then, where, made = self._known
            if where is bench and list(then) == list(now) and all(torch.equal(then[name], now[name]) for name in now):
                return made
        made = blocks(model, names, bench, examples=self.examples, curvature=self.curvature, size=self.block, damping=self.damping)
        self._known = ({name: weight.clone() for name, weight in now.items()}, bench, made)
        return made
