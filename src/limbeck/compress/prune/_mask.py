"""Which weights can be pruned, which of them go, and that what is zero stays zero.

P weights in all, in the order of their parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Compensating, Saliency
from limbeck.core.errors import ArtifactError, DataError, RecipeError, did_you_mean

__all__ = ["emptied", "hold_zeros", "lowest", "prunable", "record_of", "recorded", "remove", "restored", "rows", "scores", "still_there"]


def prunable(model: nn.Module, layers: Sequence[str] | None, spare: Sequence[str], *, biases: bool) -> dict[str, nn.Parameter]:
    """Return the parameters that pruning may thin, by name: those called `weight` that have two or more dimensions, and `bias` where asked.

    `layers` and `spare` are names of parameters or of layers, with `*` for anything.

    Raises:
        RecipeError: a pattern that nothing is named by, or only what cannot be pruned, named with why; nothing left to prune.
        DataError: a weight that is not finite.
    """
    every = dict(model.named_parameters())
    able = {name: parameter for name, parameter in every.items() if _able(name, parameter, biases)}
    for pattern in [*(layers or ()), *spare]:
        if not any(_named(name, pattern) for name in every):
            raise RecipeError(f"no layer of {type(model).__name__} is named by {pattern!r}{did_you_mean(pattern, every)}")
    for pattern in layers or ():
        if not any(_named(name, pattern) for name in able):
            found = next(name for name in every if _named(name, pattern))
            raise RecipeError(f"{pattern!r} names {found!r}, which cannot be pruned: {_why_not(found, every[found])}")
    chosen = {
        name: parameter
        for name, parameter in able.items()
        if (layers is None or any(_named(name, pattern) for pattern in layers)) and not any(_named(name, pattern) for pattern in spare)
    }
    if not chosen:
        raise RecipeError(f"{type(model).__name__} has nothing to prune{' beside what spare names' if able else ': no weight of two or more dimensions'}")
    for name, parameter in chosen.items():
        if not parameter.isfinite().all():
            raise DataError(f"{name!r} holds weights that are not finite: mend the model before it is pruned")
    return chosen


def _able(name: str, parameter: Tensor, biases: bool) -> bool:
    leaf = name.rpartition(".")[2]
    if not parameter.is_floating_point():
        return False
    return ("weight" in leaf and parameter.ndim >= 2) or (biases and "bias" in leaf)


def _why_not(name: str, parameter: Tensor) -> str:
    if "bias" in name.rpartition(".")[2]:
        return "it is a bias, and biases are pruned only where biases: true asks for it"
    return f"it has {parameter.ndim} dimension{'s' * (parameter.ndim != 1)} and type {parameter.dtype}; pruned are floating-point weights of two or more"


def _named(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter, or a layer that it is of."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


@contextmanager
def restored(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Put the weights back as they were where the block ends by an error."""
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
        raise


def scores(saliency: Saliency, model: nn.Module, names: Sequence[str], bench: Bench) -> Tensor:
    """Return what each weight costs by itself, `[P]` in float64."""
    found = saliency.contributions(model, names, bench)
    return torch.cat([saliency.total(found[name].detach().reshape(-1, 1)).double().cpu() for name in names])


def lowest(cost: Tensor, weights: Tensor, groups: Tensor, left: Tensor) -> Tensor:
    """Return which weights are gone once each group has `left` of them: `cost [P]`, `weights [P]`, `groups [P]` (0..G-1), `left [G]` to `[P]` bool.

    Zeros go first, then those of least cost, among equal ones those of least magnitude.
    """
    order = weights.abs().argsort(stable=True)
    order = order[torch.where(weights == 0, -torch.inf, cost)[order].argsort(stable=True)]
    order = order[groups[order].argsort(stable=True)]
    sizes = groups.bincount(minlength=len(left))
    starts = sizes.cumsum(0) - sizes
    grouped = groups[order]
    gone = torch.empty_like(groups, dtype=torch.bool)
    gone[order] = torch.arange(len(order)) - starts[grouped] < (sizes - left)[grouped]
    return gone


def rows(parameters: Mapping[str, Tensor]) -> Tensor:
    """Number the outputs of all parameters: a group `[P]` for all weights of one; of a bias the whole is one."""
    found, at = [], 0
    for parameter in parameters.values():
        count = len(parameter) if parameter.ndim > 1 else 1
        found.append(torch.arange(at, at + count).repeat_interleave(parameter.numel() // max(1, count)))
        at += count
    return torch.cat(found)


def remove(model: nn.Module, parameters: Mapping[str, nn.Parameter], gone: Tensor, saliency: Saliency, bench: Bench) -> None:
    """Set the weights that are `gone [P]` to zero, and let a saliency that knows how make up for them."""
    parts = gone.split([parameter.numel() for parameter in parameters.values()])
    masks = {name: part.reshape(parameter.shape).to(parameter.device) for (name, parameter), part in zip(parameters.items(), parts, strict=True)}
    if isinstance(saliency, Compensating):
        saliency.compensate(model, {name: mask & (parameters[name].detach() != 0) for name, mask in masks.items()}, bench)
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(mask, 0)
            if not parameters[name].isfinite().all():
                raise DataError(f"making up for what was pruned, {name!r} came to weights that are not finite: give the saliency more damping")


def emptied(parameters: Mapping[str, Tensor]) -> list[str]:
    """Say of each layer without a weight that nothing passes it."""
    return [
        f"no weight of {name!r} is left: nothing passes it but a bias" for name, parameter in parameters.items() if parameter.ndim > 1 and not parameter.any()
    ]


def record_of(parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """What must be known to keep zeros zero: where they are, the weights themselves say."""
    return {"parameters": list(parameters)}


def recorded(model: nn.Module, record: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Return the parameters that a record names.

    Raises:
        ArtifactError: a record that is damaged, or another model's.
    """
    known, names = dict(model.named_parameters()), _names_of(record)
    if missing := [name for name in names if name not in known]:
        raise ArtifactError(f"the record of a pruned model names {missing[0]!r}, which {type(model).__name__} has not")
    return {name: known[name] for name in names}


def still_there(model: nn.Module, record: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Return those of a record's parameters that no later surgery has put others in the place of: what took their place answers for its own zeros.

    Raises:
        ArtifactError: a record that is damaged.
    """
    known = dict(model.named_parameters())
    return {name: known[name] for name in _names_of(record) if name in known}


def _names_of(record: Mapping[str, Any]) -> list[str]:
    names = record.get("parameters")
    if not isinstance(names, list):
        raise ArtifactError("the record of a pruned model names no parameters: it is damaged")
    return names


def hold_zeros(parameters: Mapping[str, nn.Parameter]) -> None:
    """Give weights that are zero now no gradient from here on.

    An optimizer whose step is zero for a weight of zero that never had a gradient leaves them there: SGD, momentum, Adam and AdamW do, with weight decay too.
    """
    for parameter in parameters.values():
        zero = parameter.detach() == 0
        if zero.any() and parameter.requires_grad:
            parameter.register_hook(_masking(zero))


def _masking(zero: Tensor) -> Any:
    def mask(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(zero.to(gradient.device), 0)

    return mask
