"""A budget distributed over layers: the least loss for what is saved.

Shapes: K choices of one layer, the last of which leaves it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Choices", "allocate", "hull"]


@dataclass(frozen=True)
class Choices:
    """What each choice of one layer costs and loses, `[K]` each."""

    cost: Tensor
    loss: Tensor


def hull(cost: Tensor, loss: Tensor) -> list[int]:
    """Return the lower convex hull of points (cost, loss), from the cheapest to the one that loses least.

    >>> hull(torch.tensor([1.0, 2.0, 3.0, 3.5]), torch.tensor([1.0, 0.9, 0.2, 0.3]))
    [0, 2]
    """
    found: list[int] = []
    costs, losses = cost.tolist(), loss.tolist()
    for new in sorted(range(len(costs)), key=lambda one: (costs[one], losses[one])):
        if found and losses[new] >= losses[found[-1]]:
            continue
        while len(found) > 1:
            a, b = found[-2:]
            if (losses[b] - losses[a]) * (costs[new] - costs[a]) < (losses[new] - losses[a]) * (costs[b] - costs[a]):
                break
            found.pop()
        found.append(new)
    return found


def allocate(layers: Sequence[Choices], budget: float) -> list[int] | None:
    """Return a choice for each layer whose costs are together at most `budget`, or None where the cheapest are more.

    From every layer at its least loss, the step along a layer's hull that loses least for what it saves is taken until the budget is kept; no other choices
    of that cost or less lose less (Everett, Operations Research 11, 1963). What is left over is then spent, layer by layer.
    """
    hulls = [hull(layer.cost, layer.loss) for layer in layers]
    chosen = [found[-1] for found in hulls]
    spent = sum(float(layer.cost[at]) for layer, at in zip(layers, chosen, strict=True))
    steps = list[tuple[float, int, int, float]]()
    for number, (layer, found) in enumerate(zip(layers, hulls, strict=True)):
        for lower, upper in pairwise(found):
            saved, lost = float(layer.cost[upper] - layer.cost[lower]), float(layer.loss[lower] - layer.loss[upper])
            steps.append((lost / saved, number, lower, saved))
    for _, number, lower, saved in sorted(steps, key=lambda step: (step[0], step[1], -step[3])):
        if spent <= budget:
            break
        chosen[number] = lower
        spent -= saved
    if spent > budget * (1 + 1e-12):
        return None
    return _spent_up(layers, chosen, budget)


def _spent_up(layers: Sequence[Choices], chosen: list[int], budget: float) -> list[int]:
    """Give what is left of the budget to the layers, those that lose most first."""
    left = budget - sum(float(layer.cost[at]) for layer, at in zip(layers, chosen, strict=True))
    for number in sorted(range(len(layers)), key=lambda one: -float(layers[one].loss[chosen[one]])):
        layer, at = layers[number], chosen[number]
        able = torch.nonzero((layer.cost <= layer.cost[at] + left) & (layer.loss < layer.loss[at])).flatten()
        if len(able):
            chosen[number] = int(able[layer.loss[able].argmin()])
            left -= float(layer.cost[chosen[number]] - layer.cost[at])
    return chosen
