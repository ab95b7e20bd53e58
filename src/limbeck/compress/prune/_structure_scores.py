"""What it costs to take each unit away, by a saliency of its weights.

Shapes: U units of a family, n places of a unit, K weights of a unit.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Saliency
from limbeck.core.errors import DataError, MismatchError

from ._groups import Family
from ._shapes import overlaid, tensors_of

__all__ = ["Normalize", "Weighed", "scores"]

Normalize = Literal["none", "mean", "max"]
"""What a family's scores are divided by, so that those of layers of another size compare."""

Weighed = Literal["all", "matrices", "filters"]
"""Which weights of a unit are judged: all that go with it; those of linear and convolutional layers; those that make it, and not those that read it."""


def scores(
    model: nn.Module, found: Sequence[Family], saliency: Saliency, weighed: Weighed, normalize: Normalize, bench: Bench
) -> tuple[list[tuple[Family, Tensor]], list[Family]]:
    """Return each family with its units' scores `[U]`, and the families about which the saliency says nothing.

    Raises:
        MismatchError: it says nothing about any.
        DataError: a score that is not finite.
    """
    names = sorted({name for family in found for name, _, _ in _weights(model, family, weighed)})
    contributions = saliency.contributions(model, names, bench) if names else {}
    judged: list[tuple[Family, Tensor]] = []
    unknown: list[Family] = []
    for family in found:
        parts = [_of_units(contributions[name], axis, places) for name, axis, places in _weights(model, family, weighed)]
        found_scores = saliency.total(torch.cat(parts, 1)).detach().double().cpu() if parts else torch.full((family.units,), torch.nan)
        if found_scores.isnan().all():
            unknown.append(family)
        elif not found_scores.isfinite().all():
            raise DataError(f"the saliency of the units of {family.name!r} is not finite: the model's weights or the data hold NaN or infinity")
        else:
            judged.append((family, _normalised(found_scores, normalize)))
    if not judged:
        what = type(saliency).__name__
        raise MismatchError(
            f"{what} says nothing about the units of {type(model).__name__} by weighed: {weighed}; weigh all of their weights, or judge otherwise"
        )
    return judged, unknown


def _normalised(found: Tensor, normalize: Normalize) -> Tensor:
    scale = {"none": 1.0, "mean": float(found.mean()), "max": float(found.max())}[normalize]
    return found / scale if scale > 0 else found


def _weights(model: nn.Module, family: Family, weighed: Weighed) -> list[tuple[str, int, Tensor]]:
    """The parameters of a family: name, axis, and where along it its units lie `[U, n]`."""
    found: list[tuple[str, int, Tensor]] = []
    for port, places in family.places.items():
        if port.side == "parameter":
            found += [(port.path, -1, places)] if weighed == "all" else []
            continue
        module = model.get_submodule(port.path)
        matrix = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and (weighed == "matrices" or port.side != "in")
        for name, axis in (tensors_of(module, port.side) or ()) if weighed == "all" or matrix else ():
            if module._parameters.get(name) is not None and (weighed == "all" or name == "weight"):
                size = places.shape[1] // overlaid(module, port.side)
                found.append((f"{port.path}.{name}".removeprefix("."), axis, places[:, :size]))
    return found


def _of_units(contribution: Tensor, axis: int, places: Tensor) -> Tensor:
    """A tensor's contributions by unit, `[U, n * rest]`."""
    return contribution.movedim(axis, 0)[places.to(contribution.device)].flatten(1)
