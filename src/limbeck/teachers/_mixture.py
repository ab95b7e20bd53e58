"""Several answers to one question, brought to one: averages, the uncertainty that weighs them, and answers about different classes.

Shapes: M teachers, [...] predictions, C classes, C_m those that teacher m knows; weights, in logarithms, are `[M]` or `[M, ...]`, one for each prediction.
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Link

__all__ = ["Average", "entropy", "log_share", "mixture", "widened"]

Average = Literal["probabilities", "logits"]

_FLOOR = -1e4
"""The logarithm of the least weight: a teacher that has it says nothing, and no class is without a finite answer for it."""


def mixture(stacked: Tensor, log_weights: Tensor, *, average: Average, link: Link, known: Tensor | None = None) -> Tensor:
    """Return the logits `[..., C]` of the weighted mean of logits `[M, ..., C]`.

    `probabilities`: of a choice, `log sum_m w_m softmax(z_m)`; of yes-or-no answers, the logit of `sum_m w_m sigmoid(z_m)`. `logits`, and real numbers:
    `sum_m w_m z_m`. `known [M, C]` says who knows which class: of a choice, a teacher gives no probability to a class that it does not know; in the other
    means a class's weights are those of the teachers that know it, brought to a sum of one, and logits of a choice are first made logarithms of probabilities,
    since their zero is each teacher's own.

    >>> import torch
    >>> one, other = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.25, 0.75]).log()
    >>> mixture(torch.stack([one, other]), torch.tensor([0.5, 0.5]).log(), average="probabilities", link="softmax").exp()
    tensor([0.5000, 0.5000])
    """
    weights = log_weights.to(stacked).reshape(*log_weights.shape, *[1] * (stacked.ndim - log_weights.ndim))
    if average == "probabilities" and link == "softmax":
        return (_log_probabilities(stacked, known) + weights).logsumexp(0)
    if known is not None:
        held = _over_classes(known, stacked)
        weights = weights.expand(held.shape[:1] + stacked.shape[1:]).masked_fill(~held, -math.inf)
        weights = weights - weights.logsumexp(0)
    if average == "probabilities" and link == "bernoulli":
        return (F.logsigmoid(stacked) + weights).logsumexp(0) - (F.logsigmoid(-stacked) + weights).logsumexp(0)
    if known is not None and link == "softmax":
        stacked = _log_probabilities(stacked, known).masked_fill(~_over_classes(known, stacked), 0.0)
    return (weights.exp() * stacked).sum(0)


def _over_classes(known: Tensor, stacked: Tensor) -> Tensor:
    """`known [M, C]` with an axis for each of the predictions', `[M, 1, ..., C]`."""
    return known.reshape(len(known), *[1] * (stacked.ndim - 2), known.shape[-1])


def _log_probabilities(stacked: Tensor, known: Tensor | None) -> Tensor:
    return (stacked if known is None else stacked.masked_fill(~_over_classes(known, stacked), -math.inf)).log_softmax(-1)


def widened(logits: Tensor, classes: Sequence[int], count: int) -> Tensor:
    """Return logits `[..., C_m]` of the classes `classes` among `count`: `[..., count]`, zero where nothing is known.

    >>> import torch
    >>> widened(torch.tensor([5.0, 7.0]), [2, 0], 4)
    tensor([7., 0., 5., 0.])
    """
    wide = logits.new_zeros(*logits.shape[:-1], count)
    wide[..., list(classes)] = logits
    return wide


def entropy(logits: Tensor, *, link: Link) -> Tensor:
    """Return how uncertain answers `[..., C]` are, between 0 and 1: their entropy over the largest there is, log C of a choice and C log 2 of C yes-or-no ones.

    >>> import torch
    >>> entropy(torch.zeros(1, 3), link="softmax")
    tensor([1.])
    """
    if link == "bernoulli":
        inside, outside = F.logsigmoid(logits), F.logsigmoid(-logits)
        return -(_weighted(inside) + _weighted(outside)).sum(-1) / (logits.shape[-1] * math.log(2))
    return -_weighted(logits.log_softmax(-1)).sum(-1) / math.log(max(logits.shape[-1], 2))


def _weighted(log_p: Tensor) -> Tensor:
    """p log p, zero where p is."""
    p = log_p.exp()
    return (p * log_p).masked_fill(p == 0, 0.0)


def log_share(cost: Tensor, temperature: float) -> Tensor:
    """Return the logarithms `[M, ...]` of weights that fall with each teacher's cost `[M, ...]`: w_m ~ exp(-cost_m / temperature); equal where none is finite.

    >>> import torch
    >>> log_share(torch.tensor([[0.0], [torch.inf]]), 1.0).exp()
    tensor([[1.],
            [0.]])
    """
    scaled = (-cost / temperature).nan_to_num(_FLOOR, _FLOOR, _FLOOR)
    return (scaled - scaled.max(0).values).clamp(min=_FLOOR).log_softmax(0)
