"""Batch-norm scale: a channel that its norm scales down matters little.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, arXiv:1708.06519, sec. 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.core.errors import MismatchError

from ._asking import finite, parameters_of

__all__ = ["BNScale"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BNScale(Saliency):
    """The scale that batch norm gives a channel: `|gamma_c|`; several, of channels that go together, cost their sum.

    Of any other weight it says NaN, that is nothing: units without batch norm stay whole. It tells most of a network trained with a penalty on its scales, and
    nothing of single weights.

    Raises:
        MismatchError: no batch norm with a scale among the layers.
    """

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        scales = {f"{path}.weight".removeprefix(".") for path, module in model.named_modules() if isinstance(module, _NORMS) and module.affine}
        weights = parameters_of(model, names)
        if not scales & weights.keys():
            has = "its batch norm is none of them" if scales else "it has no batch norm with a scale"
            raise MismatchError(
                f"bn_scale says nothing about the {len(weights)} weights of {type(model).__name__} that it is asked about: {has}; judge by magnitude or taylor"
            )
        with torch.no_grad():
            known = finite({name: weight.detach().abs() for name, weight in weights.items() if name in scales}, "the batch-norm scale")
            return {name: known[name] if name in known else torch.full_like(weight, torch.nan) for name, weight in weights.items()}

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.nansum(1).where(contributions.isfinite().any(1), torch.nan)
