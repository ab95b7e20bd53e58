"""Filter sharing: filters that are much alike become one."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import MismatchError, RecipeError

from ._merge import merge
from ._shared import Rows, layers_of, register, unshared

__all__ = ["Filters"]


class Filters(Surgery):
    """Replace a layer's similar filters (rows of a linear layer) by their mean, and train each as one from then on.

    The layer keeps its shape and its biases, and costs as many operations: what is saved is bytes, since `share.lbk` writes a filter that occurs several times
    once. The nearest groups are merged first, by Ward's distance over r, the root mean square of the layer's filter norms: ||a - b|| / r for two filters.
    What is zero in all filters of a group stays zero.

    Args:
        target: {distance: 0.3}, merge while any two are nearer than that; or {share: 0.5}, merge until that share of each layer's filters is left.
        layers: paths of modules, with all inside them; auto takes every convolution and linear layer but the last layer, whose rows are the answers.

    Raises:
        RecipeError: a target with no sense.
        MismatchError: filters of which no two are so near (with the nearest that are), a layer that is not there or is tied to another, numbers that are not
            finite.
    """

    lasts = False

    def __init__(self, *, target: dict[Literal["distance", "share"], float], layers: Literal["auto"] | list[str] = "auto") -> None:
        if len(target) != 1:
            raise RecipeError(f"target is {target}; it is one of {{distance: 0.3}} and {{share: 0.5}}")
        (kind, value), *_ = target.items()
        if not (0 < value < 1 if kind == "share" else 0 <= value < float("inf")):
            raise RecipeError(f"target {kind} is {value:g}; it is {'above 0 and below 1' if kind == 'share' else 'finite and not negative'}")
        self.kind, self.value, self.layers = kind, value, layers

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        made = unshared(model)
        names, said = self._chosen(made)
        weights = {name: made.get_parameter(name).detach() for name in names}
        parts = {name: _rows(weight, torch.from_numpy(self._grouped(name, weight))) for name, weight in weights.items()}
        merged = {name: part for name, part in parts.items() if len(part.zeros) < len(part.index)}
        if not merged:
            nearest = min(_nearest(weight) for weight in weights.values())
            raise MismatchError(f"no two filters are merged by {{{self.kind}: {self.value:g}}}: the nearest two are {nearest:.3g} apart; allow more than that")
        rows = [_row(name, weights[name], part) for name, part in merged.items()]
        said += [f"{name} is left as it is: no two of its {len(weights[name])} filters are merged" for name in parts if name not in merged]
        for name, part in merged.items():
            register(made, name, part)
        before, after = sum(row["filters"] for row in rows), sum(row["left"] for row in rows)
        said.insert(0, f"{before} filters become {after}: they compute as much, and are stored once each")
        return Operated(made, {"rows": {row["name"]: row["left"] for row in rows}}, {"filters": before, "filters_left": after}, rows, said)

    def _chosen(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """The weights whose filters may be merged, and a line for each that is left out."""
        layers, said = layers_of(model, None if self.layers == "auto" else self.layers)
        paths = list(layers)
        if self.layers == "auto":
            paths = [path for path, module in layers.items() if not isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
            if len(paths) < 2:
                raise MismatchError(f"{type(model).__name__} has no layer but the last to share filters of: name it by layers")
            said.append(f"{paths.pop()} is left as it is: its rows are the answers")
        return [f"{path}.weight" if path else "weight" for path in paths], said

    def _grouped(self, name: str, weight: Tensor) -> NDArray[np.int64]:
        if not weight.isfinite().all():
            raise MismatchError(f"{name} holds numbers that are not finite: share the filters of a model that trained well")
        flat = weight.flatten(1).cpu().double().numpy()
        return merge(flat, least=max(1, round(self.value * len(flat)))) if self.kind == "share" else merge(flat, distance=self.value)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        made = unshared(model)
        for name, kept in record["rows"].items():
            weight = made.get_parameter(name)
            register(made, name, Rows(torch.zeros(len(weight), dtype=torch.int32), torch.zeros(kept, *weight.shape[1:], dtype=torch.bool)))
        return made


def _nearest(weight: Tensor) -> float:
    """How far the two nearest filters are apart, by the measure of `merge`."""
    flat = weight.flatten(1).cpu().double()
    return float(torch.pdist(flat).min() / flat.square().sum(1).mean().sqrt().clamp(min=1e-30)) if len(flat) > 1 else float("inf")


def _row(name: str, weight: Tensor, part: Rows) -> dict[str, Any]:
    with torch.no_grad():
        error = (part(part.right_inverse(weight)) - weight).norm() / weight.norm().clamp(min=1e-30)
    left = len(part.zeros)
    return {
        "name": name, "filters": len(weight), "left": left, "weights": weight.numel(), "weights_left": weight.numel() // len(weight) * left,
        "relative_error": float(error),
    }  # fmt: skip


def _rows(weight: Tensor, group: Tensor) -> Rows:
    """Return the parametrization of a weight whose filters are in groups; a number that is zero in a whole group stays so."""
    kept, flat = int(group.max()) + 1, (weight != 0).flatten(1).cpu().to(torch.int64)
    live = torch.zeros(kept, flat.shape[1], dtype=torch.int64).index_add_(0, group, flat)
    return Rows(group.to(weight.device, torch.int32), (live == 0).view(kept, *weight.shape[1:]).to(weight.device))
