"""Ranks for all layers together: by energy, by a budget, by what the loss makes of them, or as told.

Shapes: K choices of ranks for one layer, D ranks each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError, RecipeError, did_you_mean

from ._allocate import Choices, allocate, hull
from ._form import Form, Ladder, Target, whole
from ._layers import swapped
from ._ranks import VBMF, Budget, Energy, Fixed, Of, Sensitivity

__all__ = ["Asked", "Choice", "Guess", "choose", "mean_loss"]

Asked = Energy | Fixed | Budget | Sensitivity | VBMF
Guess = Callable[[Target], tuple[int, ...]]
"""The ranks that variational Bayes finds."""


@dataclass(frozen=True)
class Choice:
    """Path -> ranks; path -> why a layer is left as it is; figures."""

    ranks: dict[str, tuple[int, ...]]
    left: dict[str, str]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Options:
    """The choices of one layer that make it smaller: ranks, the energy that each keeps, its parameters and its MACs."""

    target: Target
    ladder: Ladder
    parameters: Tensor
    macs: Tensor

    def costs(self, of: Of) -> Tensor:
        return self.parameters if of == "parameters" else self.macs


def choose(model: nn.Module, bench: Bench, able: Sequence[Target], form: Form, asked: Asked, guess: Guess | None, macs: int) -> Choice:
    """Choose the ranks of all layers that can be factorized; `macs` is what the whole model takes.

    Raises:
        RecipeError: what is asked cannot be reached, with the closest that can; ranks that a layer has not.
    """
    if isinstance(asked, Fixed):
        return _fixed(able, form, asked)
    if isinstance(asked, VBMF):
        if guess is None:
            raise RecipeError("rank of kind vbmf is for matrices, and CP has none of its rank: choose energy, fixed, budget or sensitivity")
        return _checked(able, form, {one.path: guess(one) for one in able})
    options = [_options(one, form) for one in able]
    if isinstance(asked, Energy):
        return _energy(options, asked.share)
    losses, figures = [torch.cat([1 - one.ladder.kept, torch.zeros(1)]).double() for one in options], dict[str, float]()
    if isinstance(asked, Sensitivity):
        options = [_on_hull(one, asked.of) for one in options]
        losses, figures = _rises(model, bench, options, form, asked)
    total = float(macs if asked.of == "macs" else sum(held.numel() for held in model.parameters()))
    found = _afford(options, losses, asked.of, total, asked.share)
    chosen = {one.target.path: _ranks(one.ladder.ranks[at]) for one, at in zip(options, found, strict=True) if at < len(one.parameters)}
    whys = {one.target.path: "worth its cost" if len(one.parameters) else _none(one.target) for one in options if one.target.path not in chosen}
    if figures:
        figures["loss_rise_predicted"] = sum(float(loss[at]) for loss, at in zip(losses, found, strict=True))
    return Choice(chosen, whys, figures)


def _ranks(row: Tensor) -> tuple[int, ...]:
    return tuple(int(value) for value in row)


def _none(target: Target) -> str:
    return "no rank makes it smaller"


def _options(target: Target, form: Form) -> _Options:
    """The choices that have fewer parameters than the layer, and no more MACs."""
    ladder = form.ladder(target)
    cost = form.cost(target, ladder.ranks)
    parameters, macs = whole(target)
    smaller = (cost.parameters < parameters) & (cost.macs <= macs)
    return _Options(target, Ladder(ladder.ranks[smaller], ladder.kept[smaller]), cost.parameters[smaller], cost.macs[smaller])


def _energy(options: Sequence[_Options], share: float) -> Choice:
    chosen, left = dict[str, tuple[int, ...]](), dict[str, str]()
    for one in options:
        enough = torch.nonzero(one.ladder.kept >= share).flatten()
        if len(enough):
            order = torch.stack([one.parameters[enough], -one.ladder.kept[enough]]).tolist()
            chosen[one.target.path] = _ranks(one.ladder.ranks[enough[min(range(len(enough)), key=lambda at: (order[0][at], order[1][at]))]])
        elif len(one.parameters):
            left[one.target.path] = f"smaller only below an energy of {float(one.ladder.kept.max()):.3f}"
        else:
            left[one.target.path] = _none(one.target)
    return Choice(chosen, left)


def _fixed(able: Sequence[Target], form: Form, asked: Fixed) -> Choice:
    paths = {one.path for one in able}
    for name in asked.layers:
        if name not in paths:
            raise RecipeError(f"rank.layers names {name!r}, which is no layer that can be factorized{did_you_mean(name, paths)}")
    if asked.rank is None and not asked.layers:
        raise RecipeError("rank of kind fixed says no rank: give rank, layers, or both")
    given = {one.path: value for one in able if (value := asked.layers.get(one.path, asked.rank)) is not None}
    ranks: dict[str, tuple[int, ...]] = {}
    for one in able:
        if one.path not in given:
            continue
        value = given[one.path]
        full = form.full(one)
        ranks[one.path] = (value,) * form.ranks if isinstance(value, int) else tuple(value)
        if len(ranks[one.path]) != form.ranks:
            raise RecipeError(f"rank {value} for layer {one.path!r} has {len(ranks[one.path])} numbers, and this method takes {form.ranks}")
        if one.path in asked.layers and any(rank > most for rank, most in zip(ranks[one.path], full, strict=True)):
            raise RecipeError(f"rank {value} for layer {one.path!r} is more than it has, {' and '.join(map(str, full))}: give less, or leave it out")
    return _checked(able, form, ranks)


def _checked(able: Sequence[Target], form: Form, ranks: Mapping[str, tuple[int, ...]]) -> Choice:
    """Part ranks into those that make a layer smaller, and why the others do not."""
    chosen, left = dict[str, tuple[int, ...]](), dict[str, str]()
    for one in able:
        if one.path not in ranks:
            left[one.path] = "no rank is given for it"
            continue
        value = ranks[one.path]
        cost = form.cost(one, torch.tensor([value]))
        parameters, macs = whole(one)
        most = form.full(one)
        shown = " x ".join(map(str, value))
        if min(value) < 1:
            left[one.path] = "nothing but noise is found in it"
        elif any(rank > limit for rank, limit in zip(value, most, strict=True)):
            left[one.path] = f"rank {shown} is more than it has, {' x '.join(map(str, most))}"
        elif float(cost.parameters) >= parameters:
            left[one.path] = f"at rank {shown} it would have {int(cost.parameters):,} weights instead of {int(parameters):,}"
        elif float(cost.macs) > macs:
            left[one.path] = f"at rank {shown} it would take {int(cost.macs):,} MACs instead of {int(macs):,}"
        else:
            chosen[one.path] = value
    return Choice(chosen, left)


def _on_hull(options: _Options, of: Of) -> _Options:
    """Keep the choices of a layer that no others of its cost or less, mixed, better in energy."""
    at = torch.tensor(hull(options.costs(of), 1 - options.ladder.kept), dtype=torch.long)
    return _Options(options.target, Ladder(options.ladder.ranks[at], options.ladder.kept[at]), options.parameters[at], options.macs[at])


def _spread(costs: Tensor, steps: int) -> list[int]:
    """Return `steps` places of rising costs, those nearest to costs that rise by equal factors, or all where they are no more."""
    if len(costs) <= steps:
        return list(range(len(costs)))
    logs = costs.clamp(min=1).log()
    return sorted({int((logs - aim).abs().argmin()) for aim in torch.linspace(float(logs[0]), float(logs[-1]), steps, dtype=logs.dtype)})


def _rises(model: nn.Module, bench: Bench, options: Sequence[_Options], form: Form, asked: Sensitivity) -> tuple[list[Tensor], dict[str, float]]:
    """How much the loss rises with each layer alone at each of its choices, and 0 as it is: tried at a few, read off between them by the energy lost."""
    start = mean_loss(model, bench, asked.examples)
    rises: list[Tensor] = []
    for one in options:
        lost, found = [0.0], [0.0]
        for at in reversed(_spread(one.costs(asked.of), asked.steps)):
            made = form.made(one.target, _ranks(one.ladder.ranks[at])).module
            with swapped(model, one.target.path, made) as changed:
                found.append(mean_loss(changed, bench, asked.examples) - start)
            lost.append(float(1 - one.ladder.kept[at]))
        between = np.interp((1 - one.ladder.kept).numpy(), lost, found)
        rises.append(torch.tensor([*between, 0.0], dtype=torch.float64))
    return rises, {"loss_before": start}


@torch.no_grad()
def mean_loss(model: nn.Module, bench: Bench, examples: int) -> float:
    """The mean loss of a model on training examples; raises DataError where it is not finite."""
    parts = [bench.losses(model, batch).double() for batch in bench.batches(examples)]
    loss = float(torch.cat([part.flatten() for part in parts]).mean())
    if not math.isfinite(loss):
        raise DataError(f"the loss of {examples} training examples is {loss}: a rise cannot be measured on it")
    return loss


def _afford(options: Sequence[_Options], losses: Sequence[Tensor], of: Of, total: float, share: float) -> list[int]:
    fulls = [whole(one.target)[0 if of == "parameters" else 1] for one in options]
    costs = [torch.cat([one.costs(of), torch.tensor([full], dtype=torch.float64)]) for one, full in zip(options, fulls, strict=True)]
    rest = total - sum(fulls)
    found = allocate([Choices(cost, loss) for cost, loss in zip(costs, losses, strict=True)], share * total - rest)
    if found is None:
        least = math.ceil(10_000 * (rest + sum(float(cost.min()) for cost in costs)) / total) / 10_000
        raise RecipeError(f"these layers cannot come to {share:g} of the model's {of}: the closest is {least:g}; ask for that, or factorize more layers")
    return found
