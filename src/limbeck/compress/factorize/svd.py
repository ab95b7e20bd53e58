"""A linear layer, or a convolution of 1x1, as two thinner ones.

Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1, 1936. Weighted by the layer's inputs: Chen et al., "DRONE:
Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021; Wang et al., "SVD-LLM", ICLR 2025, arXiv:2403.07378, sec. 3.

Shapes: O outputs, I inputs of a layer, r its rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery

from ._form import Cost, Form, Ladder, Made, Target, blank, chained, put, share
from ._layers import targets
from ._moments import Moments, moments
from ._ranks import HALF, Rank
from ._vbmf import vbmf_rank
from ._work import factorized, rebuilt

__all__ = ["SVD", "low_rank", "root"]


class Factors(NamedTuple):
    """U `[O, k]`, singular values `[k]` and V^T `[k, I]`, k = min(O, I)."""

    left: Tensor
    values: Tensor
    right: Tensor


def low_rank(factors: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """Return A `[r, I]` and B `[O, r]` whose product BA is the nearest of that rank: B = U sqrt(S), A = sqrt(S) V^T.

    The error ||W - BA||_F^2 is the sum of the squared singular values left out (Eckart and Young 1936).
    """
    scale = factors.values[:rank].sqrt()
    return scale[:, None] * factors.right[:rank], factors.left[:, :rank] * scale


def root(covariance: Tensor, damp: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Return S, the symmetric root of C + damp tr(C)/I, and its inverse, of a covariance `[I, I]`: ||(W - W') S||_F^2 = E ||(W - W') x||^2."""
    values, vectors = torch.linalg.eigh(covariance)
    scale = (values.clamp(min=0) + damp * values.clamp(min=0).mean()).sqrt()
    return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T


class SVD(Surgery):
    """Write linear layers and convolutions of 1x1 as two thinner ones, W = BA, by singular values.

    At rank r a layer of `O I` weights has `r (O + I)`. A layer at `path` becomes a Sequential of `reduce` and `expand`, which gives what the layer gave. With
    `weighted` the error is that of the layer's outputs on training inputs, E ||(W - BA) x||^2, and energy is counted there; of a layer with a bias the inputs
    are taken about their mean, and the bias makes up for what the mean loses.

    Args:
        rank: how ranks are chosen, by `kind`: energy (share), fixed (rank, layers), budget (share, of), sensitivity (share, of, examples, steps), vbmf.
        layers: only these layers, and those below these names; all where it is left out.
        skip: not these layers, nor those below these names.
        weighted: whether errors are weighted by what the layer reads.
        examples: training examples by which `weighted` measures what a layer reads.

    Raises:
        RecipeError: what is asked cannot be reached, or a layer named that cannot be factorized.
        MismatchError: no layer that could be factorized, or a model that does not run without one of its layers.
        DataError: weights or inputs that are not finite, or inputs of a layer that are all alike.
    """

    def __init__(
        self, *, rank: Rank = HALF, layers: list[str] | None = None, skip: list[str] | None = None, weighted: bool = False, examples: int = 1024
    ) -> None:
        self.rank, self.layers, self.skip, self.weighted, self.examples = rank, layers, skip, weighted, examples

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        found = targets(model, (nn.Linear, nn.Conv2d), _why_not, only=self.layers, skip=self.skip)
        form = _Matrix(moments(model, [one for one in found if not one.refusal], bench, self.examples) if self.weighted else {})
        return factorized(model, bench, found, form, self.rank, form.guess)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        return rebuilt(model, record, (nn.Linear, nn.Conv2d), _empty)


def _why_not(layer: nn.Module) -> str:
    if not isinstance(layer, nn.Conv2d):
        return ""
    if layer.kernel_size != (1, 1):
        return f"its kernel is {layer.kernel_size[0]}x{layer.kernel_size[1]}: factorize.tucker and factorize.cp are for it"
    if layer.groups != 1:
        return f"it has {layer.groups} groups"
    return "it pads, as a 1x1 kernel need not" if layer.padding not in ((0, 0), "valid", "same") else ""


def _matrix(layer: nn.Module) -> Tensor:
    """The weight as a matrix `[O, I]`, float64 on the processor."""
    return layer.get_parameter("weight").detach().double().cpu().flatten(1)


def _empty(layer: nn.Module, ranks: Sequence[int]) -> nn.Sequential:
    rank, bias = ranks[0], layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        reduce = blank(nn.Conv2d, layer.in_channels, rank, 1, stride=layer.stride, like=layer)
        return chained(layer, reduce=reduce, expand=blank(nn.Conv2d, rank, layer.out_channels, 1, bias=bias, like=layer))
    assert isinstance(layer, nn.Linear)
    return chained(
        layer, reduce=blank(nn.Linear, layer.in_features, rank, like=layer), expand=blank(nn.Linear, rank, layer.out_features, bias=bias, like=layer)
    )


class _Matrix(Form):
    ranks = 1

    def __init__(self, read: Mapping[str, Moments]) -> None:
        self._read = read
        self._known: dict[str, tuple[Factors, Tensor | None]] = {}

    def full(self, target: Target) -> tuple[int, ...]:
        return (min(_matrix(target.layer).shape),)

    def cost(self, target: Target, ranks: Tensor) -> Cost:
        parameters = ranks[:, 0].double() * sum(_matrix(target.layer).shape)
        return Cost(parameters, parameters * target.seen.leaving)

    def ladder(self, target: Target) -> Ladder:
        squares = self._factors(target)[0].values.square()
        return Ladder(torch.arange(1, len(squares) + 1)[:, None], share(squares.cumsum(0), squares.sum()))

    def made(self, target: Target, ranks: Sequence[int]) -> Made:
        factors, back = self._factors(target)
        first, second = low_rank(factors, ranks[0])
        first = first if back is None else first @ back
        made, bias = _empty(target.layer, ranks), target.layer.bias
        if isinstance(bias, Tensor) and target.path in self._read:
            lost = (_matrix(target.layer) - second @ first) @ self._read[target.path].mean
            bias = bias + lost.to(bias)
        reduce, expand = made.children()
        put(reduce, first)
        put(expand, second, bias if isinstance(bias, Tensor) else None)
        return Made(made, float(self.ladder(target).kept[ranks[0] - 1]))

    def guess(self, target: Target) -> tuple[int, ...]:
        return (vbmf_rank(_matrix(target.layer)),)

    def _factors(self, target: Target) -> tuple[Factors, Tensor | None]:
        if target.path not in self._known:
            weight, back = _matrix(target.layer), None
            if target.path in self._read:
                read = self._read[target.path]
                there, back = root(read.covariance if target.layer.bias is not None else read.second)
                weight = weight @ there
            self._known[target.path] = Factors(*torch.linalg.svd(weight, full_matrices=False)), back
        return self._known[target.path]
