"""Which models of a library make the best ensemble, by what they say of examples that none of them was fitted on.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", ICML 2004, sec. 2: greedy, with replacement, sorted
initialisation, bagged.
Shapes: L models, N examples, C classes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError, MismatchError

__all__ = ["Selection", "selected"]


class Selection(NamedTuple):
    """The weight of each model `[L]`, which sum to one, and the ensemble's cross-entropy on what it was chosen by, in nats."""

    weights: tuple[float, ...]
    loss: float


def selected(
    probabilities: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    *,
    rounds: int = 30,
    start: int = 2,
    bags: int = 1,
    fraction: float = 0.5,
    seed: int = 0,
) -> Selection:
    """Choose models with replacement, each time the one whose addition to the average lowers its cross-entropy most.

    `probabilities [L, N, C]` on the examples to choose by, `labels [N]`. It begins with the `start` best by themselves (sorted initialisation), takes `rounds`
    in all, and gives back the ensemble of the step at which the cross-entropy was least. Of equals the first is taken. With several `bags` (sec. 2.3) it does
    so for each, of a random `fraction` of the library, and adds up what they take, each bag weighing the same: against too good a fit to few examples.

    Raises:
        MismatchError: shapes that do not fit, or numbers out of range.
        DataError: a probability that is not finite or is negative.
    """
    if probabilities.ndim != 3 or labels.shape != probabilities.shape[1:2] or not labels.size or not len(probabilities):
        raise MismatchError(f"probabilities are {list(probabilities.shape)} and labels {list(labels.shape)}: selection needs [L, N, C] and [N], neither empty")
    if not 1 <= start <= rounds or bags < 1 or not 0 < fraction <= 1:
        raise MismatchError(f"start is {start}, rounds {rounds}, bags {bags}, fraction {fraction:g}: 1 <= start <= rounds, 1 <= bags, 0 < fraction <= 1")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise DataError("a model of the library gives a probability that is negative or not finite: leave it out")
    told = probabilities[:, np.arange(len(labels)), labels]  # of the true class alone [L, N]: no more is read
    weights = np.zeros(len(told))
    size = max(1, round(fraction * len(told)))
    for bag in range(bags):
        own = np.arange(len(told)) if bags == 1 else np.sort(np.random.default_rng([seed, bag]).permutation(len(told))[:size])
        weights[own] += _greedy(told[own], rounds, start)
    weights /= weights.sum()
    return Selection(tuple(weights.tolist()), float(_loss(weights @ told)))


def _loss(told: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cross-entropy of probabilities of true classes `[..., N]`, at least 1e-7, so that one example ruins nothing: `[...]`, in nats."""
    return -np.log(np.clip(told, 1e-7, None)).mean(axis=-1)


def _greedy(told: npt.NDArray[np.float64], rounds: int, start: int) -> npt.NDArray[np.float64]:
    """The share of each model `[L]` in the best of the ensembles that one greedy search goes through."""
    taken = list(_loss(told).argsort(kind="stable")[: min(start, len(told))])
    summed = told[taken].sum(axis=0)
    best, least = len(taken), float(_loss(summed / len(taken)))
    while len(taken) < rounds:
        losses = _loss((summed + told) / (len(taken) + 1))
        taken.append(losses.argmin())
        summed = summed + told[taken[-1]]
        if losses.min() < least:
            best, least = len(taken), float(losses.min())
    return np.bincount(taken[:best], minlength=len(told)) / best
