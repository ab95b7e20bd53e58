"""A teacher policy found by search: linear scores of the observation, the highest wins.

Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", Methodology and Computing in Applied Probability 1(2), 1999; on a linear
policy: Szita and Lorincz, "Learning Tetris Using the Noisy Cross-Entropy Method", Neural Computation 18(12), 2006.
"""

import torch
from torch import Tensor

from limbeck.bridges.gym import Policy, play, spaces
from limbeck.core.draw import bits, gaussian, key
from limbeck.core.errors import DataError

__all__ = ["greedy", "searched"]

_APART = 1000
"""Between the seeds of two rounds: policies of one round play the same episodes."""
_POPULATION, _ELITE, _ROUNDS, _EPISODES = 32, 6, 12, 2
_EXTRA_NOISE = 0.1
"""Added to the spread of the elite, times what is left of the rounds, so that the search does not stop too soon."""


def greedy(weights: Tensor) -> Policy:
    """Return the policy of `weights [A, S]`: the action with the highest score `weights @ observation`."""
    return lambda seen, _step: int((weights @ seen).argmax())


def searched(name: str, seed: int) -> Tensor:
    """Return weights `[A, S]` of a policy whose mean return no other of the last round beats; a pure function of the environment and the seed.

    Raises:
        DataError: no policy of the search does better than the first.
    """
    known, start = spaces(name), seed * 100 * _APART
    mean, spread = torch.zeros(known.actions * known.observation), torch.ones(known.actions * known.observation)
    best, reached, first = mean, -float("inf"), None
    for turn in range(_ROUNDS):
        counters = torch.arange(_POPULATION * len(mean)).view(_POPULATION, -1)
        drawn = mean + spread * gaussian(bits(counters, key(seed, turn)))
        scores = torch.stack([_score(name, one.view(known.actions, -1), start + _APART * turn) for one in drawn])
        first = scores.max() if first is None else first
        elite = drawn[scores.argsort(descending=True)[:_ELITE]]
        mean, spread = elite.mean(0), elite.std(0) + _EXTRA_NOISE * (1 - turn / _ROUNDS)
        score = float(_score(name, mean.view(known.actions, -1), start + _APART * _ROUNDS))
        if score >= reached:
            best, reached = mean, score
        if known.longest is not None and float(scores.sort().values[-_ELITE:].mean()) >= known.longest:
            break  # the elite holds out to the end in an environment that gives a point for every step
    assert first is not None
    if reached < float(first):
        raise DataError(f"the search found no policy for {name} better than chance: name one of your own, expert: python:module:policy")
    return best.view(known.actions, -1)


def _score(name: str, weights: Tensor, seed: int) -> Tensor:
    return play(name, greedy(weights), seed=seed, episodes=_EPISODES).returns.mean()
