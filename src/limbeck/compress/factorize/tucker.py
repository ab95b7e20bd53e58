"""A convolution as three: 1x1 into fewer channels, the kernel among those, 1x1 back.

Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016, arXiv:1511.06530, sec. 3. Started by
HOSVD and mended by HOOI: De Lathauwer, De Moor and Vandewalle, SIAM Journal on Matrix Analysis 21, 2000, pp. 1253 and 1324.

Shapes: a kernel [T, S, h, w] from S to T channels; ranks q of T and p of S.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery

from ._form import Cost, Form, Ladder, Made, Target, blank, chained, put, share
from ._layers import targets
from ._ranks import HALF, Rank
from ._vbmf import vbmf_rank
from ._work import factorized, rebuilt

__all__ = ["Tucker", "tucker2"]

_SWEEPS, _SETTLED = 50, 1e-10


class Factors(NamedTuple):
    """Out `[T, q]` and `into [S, p]`, both with orthonormal columns, and the core `[q, p, h, w]`."""

    out: Tensor
    core: Tensor
    into: Tensor


def _mode(kernel: Tensor, mode: int) -> Tensor:
    """The kernel as a matrix whose rows are one of its sides."""
    return kernel.movedim(mode, 0).flatten(1)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The first `rank` left singular vectors of a wide matrix."""
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]


def _onto(kernel: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """The kernel seen along the columns of both factors."""
    return torch.einsum("tshw,tq,sp->qphw", kernel, out, into)


def tucker2(kernel: Tensor, ranks: tuple[int, int]) -> Factors:
    """Return factors with `kernel[t, s] = sum_qp out[t, q] core[q, p] into[s, p]`, of least squared error by HOOI, from HOSVD.

    Each sweep takes one factor from the kernel projected on the other, until the energy of the core, which only rises, stands still.
    """
    first, second = ranks
    out, into = _leading(_mode(kernel, 0), first), _leading(_mode(kernel, 1), second)
    kept = -1.0
    for _ in range(_SWEEPS):
        out = _leading(_mode(torch.einsum("tshw,sp->tphw", kernel, into), 0), first)
        into = _leading(_mode(torch.einsum("tshw,tq->qshw", kernel, out), 1), second)
        before, kept = kept, float(_onto(kernel, out, into).square().sum())
        if kept - before <= _SETTLED * kept:
            break
    return Factors(out, _onto(kernel, out, into), into)


class Tucker(Surgery):
    """Write convolutions as 1x1 to p channels, the kernel from p to q, and 1x1 to the outputs: Tucker-2.

    `h w S T` weights become `S p + h w p q + q T`; at p = S the first of the three falls away, at q = T the last. A layer at `path` becomes a Sequential of
    `reduce`, `core` and `expand`, which gives what the layer gave; stride, padding and dilation are the core's.

    Args:
        rank: how ranks are chosen, by `kind`: energy (share), fixed (rank, layers), budget (share, of), sensitivity (share, of, examples, steps), vbmf.
        layers: only these layers, and those below these names; all where it is left out.
        skip: not these layers, nor those below these names.

    Raises:
        RecipeError: what is asked cannot be reached, or a layer named that cannot be factorized.
        MismatchError: no layer that could be factorized, or a model that does not run without one of its layers.
        DataError: weights that are not finite.
    """

    def __init__(self, *, rank: Rank = HALF, layers: list[str] | None = None, skip: list[str] | None = None) -> None:
        self.rank, self.layers, self.skip = rank, layers, skip

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        found = targets(model, (nn.Conv2d,), _why_not, only=self.layers, skip=self.skip)
        form = _Tucker2()
        return factorized(model, bench, found, form, self.rank, form.guess)

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
    (first, second), (into, out), bias = ranks, (layer.in_channels, layer.out_channels), layer.bias is not None
    how = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode}
    core = blank(nn.Conv2d, second, first, layer.kernel_size, bias=bias and first == out, like=layer, **how)
    before = {"reduce": blank(nn.Conv2d, into, second, 1, like=layer)} if second < into else {}
    after = {"expand": blank(nn.Conv2d, first, out, 1, bias=bias, like=layer)} if first < out else {}
    return chained(layer, **before, core=core, **after)


class _Tucker2(Form):
    ranks = 2

    def __init__(self) -> None:
        self._known: dict[str, Ladder] = {}

    def full(self, target: Target) -> tuple[int, ...]:
        return tuple(_kernel(target.layer).shape[:2])

    def cost(self, target: Target, ranks: Tensor) -> Cost:
        (out, into, high, wide), (first, second) = _kernel(target.layer).shape, ranks.double().unbind(1)
        reduce, core, expand = into * second * (second < into), high * wide * first * second, first * out * (first < out)
        return Cost(reduce + core + expand, reduce * target.seen.entering + (core + expand) * target.seen.leaving)

    def ladder(self, target: Target) -> Ladder:
        """Every pair of ranks, with the energy that HOSVD cut to it keeps: that of the corner of the whole core; HOOI keeps as much or more."""
        if target.path not in self._known:
            kernel = _kernel(target.layer)
            out, into = kernel.shape[:2]
            whole = _onto(kernel, _leading(_mode(kernel, 0), out), _leading(_mode(kernel, 1), into)).square().sum((2, 3))
            kept = share(whole.cumsum(0).cumsum(1), whole.sum())
            self._known[target.path] = Ladder(torch.cartesian_prod(torch.arange(1, out + 1), torch.arange(1, into + 1)), kept.flatten())
        return self._known[target.path]

    def made(self, target: Target, ranks: Sequence[int]) -> Made:
        kernel, (first, second) = _kernel(target.layer), ranks
        out, core, into = tucker2(kernel, (first, second))
        made, layers = _empty(target.layer, ranks), dict[str, nn.Module]()
        layers.update(made.named_children())
        kept = float(share(core.square().sum(), kernel.square().sum()))
        if "reduce" in layers:
            put(layers["reduce"], into.T)
        else:
            core = torch.einsum("qphw,sp->qshw", core, into)
        bias = target.layer.bias if isinstance(target.layer.bias, Tensor) else None
        if "expand" in layers:
            put(layers["expand"], out, bias)
            put(layers["core"], core)
        else:
            put(layers["core"], torch.einsum("tq,qphw->tphw", out, core), bias)
        return Made(made, kept)

    def guess(self, target: Target) -> tuple[int, ...]:
        kernel = _kernel(target.layer)
        return vbmf_rank(_mode(kernel, 0)), vbmf_rank(_mode(kernel, 1))
