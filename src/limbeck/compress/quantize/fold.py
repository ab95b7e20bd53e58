"""Batch norm folded into the layer before it.

In evaluation y = gamma (W x + b - mean) / sqrt(var + eps) + beta is one affine map: W' = a W, b' = a (b - mean) + beta, a = gamma / sqrt(var + eps).
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, sec. 3.2.

Shapes: C output channels.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError

from ._observe_flow import Flow, first_batch, flow_of

__all__ = ["Fold", "fold_pair", "folded", "foldings", "shared_weights"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Fold(Surgery):
    """Fold every batch norm into the convolution or linear layer that it alone reads; what the model computes stays the same.

    The norm becomes an identity, under its own path, and the layer has a bias. A batch norm that reads anything else (a sum, as in pre-activated networks)
    stays, and is named.
    """

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the model without the batch norms that could be folded.

        Raises:
            MismatchError: a model without batch norm, or of whose norms none can be folded.
        """
        flow = flow_of(model, bench.task, first_batch(bench))
        pairs, said = foldings(model, flow)
        if not pairs:
            raise MismatchError(f"{type(model).__name__} has no batch norm to fold{': ' if said else ''}{'; '.join(said)}")
        made = copy.deepcopy(model)
        for layer, norm in pairs:
            fold_pair(made, layer, norm)
        rows = [{"name": layer, "folded": norm} for layer, norm in pairs]
        return Operated(made, {"pairs": [list(pair) for pair in pairs]}, {"folded_norms": len(pairs)}, rows, said)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return a model without the norms that were folded."""
        return folded(model, record["pairs"])


def folded(model: nn.Module, pairs: Sequence[Sequence[str]]) -> nn.Module:
    """Fold pairs (layer, norm) of paths, in place."""
    for layer, norm in pairs:
        fold_pair(model, layer, norm)
    return model


@torch.no_grad()
def fold_pair(model: nn.Module, layer_path: str, norm_path: str) -> None:
    """Fold one batch norm into the layer before it, in place and in float64."""
    layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
    assert isinstance(layer, _LAYERS) and isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    factor = _or(norm.weight, 1.0, norm.running_var) / (norm.running_var.double() + norm.eps).sqrt()  # [C]
    bias = (_or(layer.bias, 0.0, norm.running_mean) - norm.running_mean.double()) * factor + _or(norm.bias, 0.0, norm.running_mean)
    weight = layer.weight.double() * factor.view(-1, *[1] * (layer.weight.ndim - 1))
    kind = layer.weight
    layer.weight = nn.Parameter(weight.to(kind.dtype), requires_grad=kind.requires_grad)
    layer.bias = nn.Parameter(bias.to(kind.dtype), requires_grad=kind.requires_grad)
    model.set_submodule(norm_path, nn.Identity().train(norm.training), strict=True)


def _or(value: Tensor | None, otherwise: float, like: Tensor) -> Tensor:
    return torch.full_like(like, otherwise, dtype=torch.float64) if value is None else value.double()


def foldings(model: nn.Module, flow: Flow) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (layer, norm) for every batch norm that can be folded, and a line for every other."""
    pairs: list[tuple[str, str]] = []
    said: list[str] = []
    shared = shared_weights(model)
    for path, norm in model.named_modules():
        if isinstance(norm, _BatchNorm):
            layer, why = _layer_before(model, path, norm, flow, shared)
            if why:
                said.append(f"{path} is not folded: {why}")
            else:
                pairs.append((layer, path))
    return pairs, said


def _layer_before(model: nn.Module, path: str, norm: _BatchNorm, flow: Flow, shared: set[str]) -> tuple[str, str]:
    """Return the layer that a norm folds into, or why there is none."""
    runs = flow.runs(path)
    if len(runs) != 1:
        return "", f"it runs {len(runs)} times"
    if norm.running_mean is None:
        return "", "it has no running statistics"
    maker = flow.maker(runs[0].reads[0])
    if maker is None or maker.path is None:
        return "", f"it reads {'the input' if maker is None else f'what {maker.name} gives'}, not a layer"
    layer = model.get_submodule(maker.path)
    if type(layer) not in _LAYERS:
        return "", f"it reads {maker.path}, a {maker.name}"
    if len(flow.runs(maker.path)) != 1 or flow.next(maker) != runs[0]:
        return "", f"what {maker.path} gives is read elsewhere too"
    if maker.path in shared:
        return "", f"the weights of {maker.path} are shared"
    if isinstance(layer, nn.Linear) and len(flow.shapes[maker.gives[0]]) != 2:
        return "", f"it normalises the tokens of {maker.path}, not its channels"
    return maker.path, ""


def shared_weights(model: nn.Module) -> set[str]:
    """Return the paths of modules of whose own parameters one belongs to another module too."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}
