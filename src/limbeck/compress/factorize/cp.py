"""A convolution as four: 1x1, a column and a row for each channel, 1x1.

Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015, arXiv:1412.6553, sec. 3.

Shapes: a kernel [T, S, h, w] from S to T channels; rank R.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import RecipeError

from ._als import Fit, cp
from ._form import Cost, Form, Ladder, Made, Target, blank, chained, put
from ._layers import targets
from ._ranks import HALF, Rank
from ._work import factorized, rebuilt

__all__ = ["CP"]

_SWOLLEN, _APART = 4.0, 0.01
_STEP, _QUICK = 1.4, 25
"""By what factor ranks are looked at, and in how many sweeps."""


class CP(Surgery):
    """Write convolutions as 1x1 to R channels, h x 1 and 1 x w within each of them, and 1x1 to the outputs: CP.

    K[t, s, i, j] = sum_r T[t, r] V[i, r] H[j, r] S[s, r]: `h w S T` weights become `R (S + h + w + T)`. A layer at `path` becomes a Sequential of `reduce`,
    `vertical`, `horizontal` and `expand`, which gives what the layer gave. Found by alternating least squares from several starts, the best of which is taken;
    that they end apart, or that terms cancel each other, is said: training from there is unstable, and wants a small learning rate. Ranks are looked at
    in steps of 1.4 by a short fit from the first start, which keeps a little less than the one that is taken.

    Args:
        rank: how ranks are chosen, by `kind`: energy (share), fixed (rank, layers), budget (share, of), sensitivity (share, of, examples, steps).
        layers: only these layers, and those below these names; all where it is left out.
        skip: not these layers, nor those below these names.
        starts: from how many starts each fit is made, one from singular vectors, the others random; the same in every run.

    Raises:
        RecipeError: what is asked cannot be reached, or a layer named that cannot be factorized.
        MismatchError: no layer that could be factorized, or a model that does not run without one of its layers.
        DataError: weights that are not finite.
    """

    def __init__(self, *, rank: Rank = HALF, layers: list[str] | None = None, skip: list[str] | None = None, starts: int = 3) -> None:
        if starts < 1:
            raise RecipeError(f"starts is {starts}: one or more")
        self.rank, self.layers, self.skip, self.starts = rank, layers, skip, starts

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        found = targets(model, (nn.Conv2d,), _why_not, only=self.layers, skip=self.skip)
        return factorized(model, bench, found, _CP(self.starts), self.rank)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        return rebuilt(model, record, (nn.Conv2d,), _empty)


def _why_not(layer: nn.Module) -> str:
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1:
        return f"it has {layer.groups} groups"
    return "its kernel is 1x1, a matrix: factorize.svd is for it" if layer.kernel_size == (1, 1) else ""


def _kernel(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach().double().cpu()


def _empty(layer: nn.Module, ranks: Sequence[int]) -> nn.Sequential:
    assert isinstance(layer, nn.Conv2d)
    rank, (high, wide), (down, right), (tall, broad) = ranks[0], layer.kernel_size, layer.stride, layer.dilation
    above, beside = (layer.padding, layer.padding) if isinstance(layer.padding, str) else ((layer.padding[0], 0), (0, layer.padding[1]))
    mode = layer.padding_mode
    return chained(
        layer,
        reduce=blank(nn.Conv2d, layer.in_channels, rank, 1, like=layer),
        vertical=blank(nn.Conv2d, rank, rank, (high, 1), (down, 1), above, (tall, 1), rank, padding_mode=mode, like=layer),
        horizontal=blank(nn.Conv2d, rank, rank, (1, wide), (1, right), beside, (1, broad), rank, padding_mode=mode, like=layer),
        expand=blank(nn.Conv2d, rank, layer.out_channels, 1, bias=layer.bias is not None, like=layer),
    )


class _CP(Form):
    ranks = 1

    def __init__(self, starts: int) -> None:
        self._starts = starts
        self._known: dict[tuple[str, int], Fit] = {}
        self._looked: dict[tuple[str, int], float] = {}

    def full(self, target: Target) -> tuple[int, ...]:
        """The rank that any kernel of this size has at most: the product of all its sides but the longest."""
        sides = sorted(_kernel(target.layer).shape)
        return (sides[0] * sides[1] * sides[2],)

    def cost(self, target: Target, ranks: Tensor) -> Cost:
        (out, into, high, wide), rank, seen = _kernel(target.layer).shape, ranks[:, 0].double(), target.seen
        return Cost(rank * (out + into + high + wide), rank * (into * seen.entering + high * seen.between + (wide + out) * seen.leaving))

    def ladder(self, target: Target) -> Ladder:
        kernel = _kernel(target.layer)
        most = min(self.full(target)[0], (kernel.numel() - 1) // sum(kernel.shape))
        ranks = list[int]()
        while not ranks or ranks[-1] < most:
            ranks.append(min(most, max(ranks[-1] + 1, round(_STEP * ranks[-1]))) if ranks else 1)
        return Ladder(torch.tensor(ranks)[:, None], torch.tensor([self._quick(target, rank) for rank in ranks], dtype=torch.float64))

    def made(self, target: Target, ranks: Sequence[int]) -> Made:
        found, made = self._fit(target, ranks[0]), _empty(target.layer, ranks)
        out, into, vertical, horizontal = found.factors
        bias = target.layer.bias if isinstance(target.layer.bias, Tensor) else None
        for layer, weight in zip(made, (into.T, vertical.T, horizontal.T), strict=False):
            put(layer, weight)
        put(made[-1], out, bias)
        return Made(made, found.kept, _doubts(found, ranks[0], self._starts))

    def _quick(self, target: Target, rank: int) -> float:
        if (target.path, rank) not in self._looked:
            self._looked[target.path, rank] = cp(_kernel(target.layer), rank, 1, _QUICK).kept
        return self._looked[target.path, rank]

    def _fit(self, target: Target, rank: int) -> Fit:
        if (target.path, rank) not in self._known:
            self._known[target.path, rank] = cp(_kernel(target.layer), rank, self._starts)
        return self._known[target.path, rank]


def _doubts(found: Fit, rank: int, starts: int) -> list[str]:
    said = list[str]()
    if found.swelling > _SWOLLEN:
        said.append(
            f"at rank {rank} its terms have {found.swelling:.0f} times the kernel's energy and cancel each other: training may be unstable; a lower rate helps"
        )
    if found.spread > _APART:
        said.append(f"at rank {rank} {starts} starts end up to {found.spread:.3f} of the energy apart: more starts may find a better fit")
    return said
