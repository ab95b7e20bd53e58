"""Random: the floor that every saliency must rise above."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.core.draw import bits, key, uniform

from ._asking import parameters_of

__all__ = ["Random"]


class Random(Saliency):
    """A number in 0 < u < 1 for each weight, a pure function of the bench's seed, the parameter's name and the weight's place.

    So what is removed at one ratio is removed at every higher one. Several together are worth what the first of them drew, uniform whatever their number.
    """

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, weight in parameters_of(model, names).items():
            places = torch.arange(weight.numel(), device=weight.device)
            found[name] = uniform(bits(places, key(bench.seed, zlib.crc32(name.encode()))), 1).reshape(weight.shape)
        return found

    def total(self, contributions: Tensor) -> Tensor:
        return contributions[:, 0].clone()
