"""Weights that are pruned while they are trained: the rise of the sparsity, what is kept at each pruning, and the layers' masks.

A layer's weight is parametrized: what the layer reads is the weight where its mask is True and zero elsewhere. The masks of a model follow one schedule, which
is told where training stands (`Clocked`), and change in training mode alone. All of it is state: the masks, the scores, how many prunings are done.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.core.errors import MismatchError
from limbeck.core.objective import Clocked
from limbeck.core.schedule import Clock

__all__ = ["Masked", "Rise", "attach", "kept", "masked"]

Scope = Literal["layer", "global"]
Judge = Literal["magnitude", "movement"]
_EPS = 1e-9  # 0.3 / 0.1 is just under 3


@dataclass(frozen=True)
class Rise:
    """The sparsity over training: from zero at `start` to `ratio` at `end`, both shares of training, in prunings that are `every` apart.

    After k of n prunings it is ratio (1 - (1 - k/n)^3): Zhu & Gupta 2017, arXiv:1710.01878, eq. 1, with s_i = 0; the n-th falls on `end`.
    """

    ratio: float
    start: float
    end: float
    every: float

    @property
    def prunings(self) -> int:
        return max(1, math.ceil((self.end - self.start) / self.every - _EPS))

    def due(self, clock: Clock) -> int:
        """How many prunings should be done at a moment of training."""
        share = clock.epoch / clock.epochs
        if share >= self.end - _EPS:
            return self.prunings
        return min(self.prunings - 1, max(0, math.floor((share - self.start) / self.every + _EPS)))

    def at(self, pruning: int) -> float:
        """The sparsity after a pruning, counted from 1.

        >>> [round(Rise(0.8, 0.0, 0.5, 0.125).at(k), 4) for k in range(5)]
        [0.0, 0.4625, 0.7, 0.7875, 0.8]
        """
        done = 1.0 if pruning >= self.prunings else pruning * self.every / (self.end - self.start)
        return self.ratio * (1 - (1 - done) ** 3)


def kept(scores: Sequence[Tensor], ratio: float, scope: Scope) -> list[Tensor]:
    """Return masks, False at the share `ratio` of weights with the lowest scores, of each tensor or of all together.

    As many go as the share comes to, rounded; of equal scores the first. The best weight of each tensor stays, however low it is.
    """
    parts = [score.flatten().float().clone() for score in scores]
    for part in parts:
        part[part.argmax()] = math.inf
    if scope == "layer":
        masks = [_above(part, ratio) for part in parts]
    else:
        masks = _above(torch.cat(parts), ratio).split([part.numel() for part in parts])
    return [(mask | part.isinf()).view_as(score) for mask, part, score in zip(masks, parts, scores, strict=True)]


def _above(scores: Tensor, ratio: float) -> Tensor:
    gone = scores.argsort(stable=True)[: math.floor(ratio * scores.numel() + 0.5)]
    return torch.ones_like(scores, dtype=torch.bool).index_fill_(0, gone, False)


class Pruner(Clocked):
    """What all masks of a model follow; a submodule of the first of them."""

    done: Tensor

    def __init__(self, rise: Rise, scope: Scope) -> None:
        super().__init__()
        self.rise = rise
        self.scope: Scope = scope
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self._members: tuple[tuple[nn.Module, str, Masked], ...] = ()
        self._seen = (0, self.done._version)

    def follow(self) -> None:
        """Prune, where a pruning is due that is not done."""
        due = self.rise.due(self.clock)
        if self._seen == (due, self.done._version):  # the host waits for the device at prunings alone
            return
        if due > int(self.done):
            self._prune(self.rise.at(due))
            self.done.fill_(due)
        self._seen = (due, self.done._version)

    @torch.no_grad()
    def _prune(self, ratio: float) -> None:
        scores = [masked.judged(_original(layer, name)) for layer, name, masked in self._members]
        if all(masked.score is not None for _, _, masked in self._members) and not any(bool(score.any()) for score in scores):
            raise MismatchError("prune.gradual judges by movement, and no gradient has come to the scores yet: let it start later, or look why none comes")
        for mask, (_, _, masked) in zip(kept(scores, ratio, self.scope), self._members, strict=True):
            masked.mask.copy_(mask)


class Masked(nn.Module):
    """The parametrization of one weight: the weight where the mask is True, zero elsewhere.

    Judged by movement it learns a score for each weight, straight through the mask: dL/dS = dL/dW' * W, W' what the layer reads (Sanh et al. 2020,
    arXiv:2005.07683, sec. 4), so that plain gradient descent sums -w dL/dw' in it.
    """

    mask: Tensor
    score: Tensor | None

    def __init__(self, weight: Tensor, pruner: Pruner, judge: Judge, *, leads: bool) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.register_parameter("score", nn.Parameter(torch.zeros_like(weight)) if judge == "movement" else None)
        if leads:
            self.schedule = pruner
        self._pruner = (pruner,)  # in a tuple: a submodule of one mask alone

    @property
    def pruner(self) -> Pruner:
        return self._pruner[0]

    def judged(self, weight: Tensor) -> Tensor:
        """What each weight is judged by, the lowest to go."""
        return weight.detach().abs() if self.score is None else self.score.detach().clone()

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            _follow(self)
        read = weight.masked_fill(~self.mask, 0.0)
        if self.score is None or not self.training:
            return read
        return read + (self.score - self.score.detach()) * weight.detach()  # adds zero, and the scores' gradient


@torch.compiler.disable
def _follow(masked: Masked) -> None:
    masked.pruner.follow()


def _original(layer: nn.Module, name: str) -> Tensor:
    held = layer.get_submodule(f"parametrizations.{name}")
    return held.get_parameter("original")


def attach(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Parametrize the weights that a record names, all masks following one schedule."""
    pruner = Pruner(Rise(record["ratio"], record["start"], record["end"], record["every"]), record["scope"])
    members = []
    for path in record["parameters"]:
        owner, _, name = path.rpartition(".")
        layer = model.get_submodule(owner)
        weight = layer.get_parameter(name)
        mask = Masked(weight.detach(), pruner, record["saliency"], leads=not members).train(layer.training)
        parametrize.register_parametrization(layer, name, mask)
        members.append((layer, name, mask))
    pruner._members = tuple(members)


def masked(model: nn.Module) -> Iterator[tuple[str, Masked]]:
    """Give the masks of a model, each with the path of its weight."""
    for path, module in model.named_modules():
        if isinstance(module, Masked):
            owner, _, name = path.rpartition(".")[0].rpartition(".")
            owner = owner.removesuffix("parametrizations").removesuffix(".")
            yield f"{owner}.{name}" if owner else name, module
