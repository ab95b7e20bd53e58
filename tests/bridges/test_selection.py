"""Ensemble selection against a naive search, and what it promises."""

from collections import Counter

import numpy as np
import pytest

from limbeck.bridges._selection import selected
from limbeck.core.errors import DataError, MismatchError


def library(models: int = 6, examples: int = 40, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    made = np.random.default_rng(seed)
    labels = made.integers(0, classes, examples)
    logits = made.normal(size=(models, examples, classes)) * 2
    logits[:, np.arange(examples), labels] += made.uniform(0, 2, (models, 1))
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True), labels


def cost(members: list[int], probabilities: np.ndarray, labels: np.ndarray) -> float:
    mean = sum(probabilities[one] for one in members) / len(members)
    return -sum(np.log(max(mean[n, label], 1e-7)) for n, label in enumerate(labels)) / len(labels)


def naive(probabilities: np.ndarray, labels: np.ndarray, rounds: int, start: int) -> dict[int, float]:
    models = range(len(probabilities))
    members = sorted(models, key=lambda one: cost([one], probabilities, labels))[:start]
    best = list(members)
    while len(members) < rounds:
        members.append(min(models, key=lambda one: cost([*members, one], probabilities, labels)))
        if cost(members, probabilities, labels) < cost(best, probabilities, labels):
            best = list(members)
    return {one: count / len(best) for one, count in Counter(best).items()}


@pytest.mark.parametrize(("rounds", "start", "seed"), [(12, 1, 0), (12, 3, 1), (4, 4, 2), (1, 1, 3)])
def test_it_is_the_greedy_search(rounds: int, start: int, seed: int) -> None:
    probabilities, labels = library(seed=seed)
    found = selected(probabilities, labels, rounds=rounds, start=start)
    expected = naive(probabilities, labels, rounds, start)
    assert found.weights == pytest.approx([expected.get(one, 0.0) for one in range(6)])
    assert found.loss == pytest.approx(cost([0], np.tensordot(found.weights, probabilities, 1)[None], labels))


def test_it_is_no_worse_than_the_best_model() -> None:
    for seed in range(5):
        probabilities, labels = library(seed=seed)
        assert selected(probabilities, labels, start=1).loss <= min(cost([one], probabilities, labels) for one in range(6))


def test_a_model_that_knows_everything_is_chosen_alone() -> None:
    probabilities, labels = library()
    probabilities[3] = np.eye(3)[labels]
    assert selected(probabilities, labels, start=1).weights == (0, 0, 0, 1, 0, 0)


def test_bags_are_searches_of_parts_of_the_library_that_weigh_the_same() -> None:
    probabilities, labels = library()
    found = selected(probabilities, labels, bags=50, fraction=0.5, seed=1)
    assert sum(found.weights) == pytest.approx(1) and sum(weight > 0 for weight in found.weights) > sum(
        weight > 0 for weight in selected(probabilities, labels).weights
    )
    assert found == selected(probabilities, labels, bags=50, fraction=0.5, seed=1)
    assert found != selected(probabilities, labels, bags=50, fraction=0.5, seed=2)
    probabilities[0], probabilities[1:] = np.eye(3)[labels], 1 / 3
    assert 0.2 < selected(probabilities, labels, bags=200, fraction=0.5, start=1).weights[0] < 0.8  # chosen alone in every bag that holds it


def test_what_cannot_be_chosen_from_is_refused() -> None:
    probabilities, labels = library()
    for bad, wrong, options, kind in (
        (probabilities[0], labels, {}, MismatchError),
        (probabilities, labels[1:], {}, MismatchError),
        (probabilities[:0], labels, {}, MismatchError),
        (probabilities, labels, {"start": 0}, MismatchError),
        (probabilities, labels, {"rounds": 1, "start": 2}, MismatchError),
        (probabilities, labels, {"fraction": 0.0}, MismatchError),
        (np.where(probabilities > 0.5, np.nan, probabilities), labels, {}, DataError),
        (probabilities - 1, labels, {}, DataError),
    ):
        with pytest.raises(kind):
            selected(bad, wrong, **options)
