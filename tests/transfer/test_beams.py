"""Beam search against every sequence there is, and BLEU against its definition."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.transfer._beams import bleu, searched

V, END = 3, 2


class _Table:
    """A reader whose answer depends on all that it read: a random table by prefix, for rows that begin with another token each."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        self._seen = tokens if self._seen is None else torch.cat([self._seen, tokens], 1)
        return torch.stack([logits(tuple(row)) for row in self._seen.tolist()])

    def take(self, rows: Tensor) -> None:
        assert self._seen is not None
        self._seen = self._seen[rows]


def logits(prefix: tuple[int, ...]) -> Tensor:
    seed = sum((one + 2) * 7**at for at, one in enumerate(prefix))
    return 2 * torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every(first: int, room: int) -> dict[tuple[int, ...], float]:
    """Each finished text after a prompt of one token, and its log-probability."""
    found: dict[tuple[int, ...], float] = {}
    for long in range(1, room + 1):
        for text in itertools.product(range(V), repeat=long):
            if END not in text[:-1] and (text[-1] == END or long == room):
                found[text] = sum(float(logits((first, *text[:at])).log_softmax(0)[one]) for at, one in enumerate(text))
    return found


def test_a_wide_beam_finds_the_likeliest_of_all() -> None:
    prompts, room = torch.tensor([[5], [6], [7]]), torch.tensor([4, 2, 3])
    size = 3  # of three tokens, one of which ends: no more than two unfinished texts live in any step of the first two
    tokens, lengths, scores = searched(_Table(), prompts, room, size, END)
    for row, (first, most) in enumerate(zip((5, 6, 7), room.tolist(), strict=True)):
        truth = every(first, most)
        assert math.isclose(sum(math.exp(one) for one in truth.values()), 1, rel_tol=1e-9)
        made = [tuple(one[:count]) for one, count in zip(tokens[row].tolist(), lengths[row].tolist(), strict=True)]
        assert len({*made}) == size
        for text, score in zip(made, scores[row].tolist(), strict=True):
            assert math.isclose(truth[text], score, rel_tol=1e-9)
        assert scores[row].tolist() == sorted(scores[row].tolist(), reverse=True)
    best = max(every(6, 2).items(), key=lambda one: one[1])
    assert tuple(tokens[1, 0, : lengths[1, 0]].tolist()) == best[0]


def test_a_beam_of_one_is_greedy() -> None:
    tokens, lengths, _ = searched(_Table(), torch.tensor([[5], [9]]), torch.tensor([5, 5]), 1, END)
    for row, first in enumerate((5, 9)):
        text = [first]
        while len(text) < 6 and text[-1] != END:
            text.append(int(logits(tuple(text)).argmax()))
        assert tokens[row, 0, : lengths[row, 0]].tolist() == text[1:]


def test_a_beam_wider_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(RecipeError, match="a beam of 4 is wider than the vocabulary of 3"):
        searched(_Table(), torch.tensor([[5]]), torch.tensor([2]), 4, END)


def test_bleu_is_its_definition() -> None:
    made, reference = [1, 2, 3, 9, 5], [1, 2, 3, 4, 5, 6]
    expected = math.exp((math.log(4 / 5) + math.log(3 / 5) + math.log(2 / 4) + math.log(1 / 3)) / 4) * math.exp(1 - 6 / 5)
    assert math.isclose(bleu(made, reference), expected)
    assert bleu([7, 7, 7], [1, 2]) == 0 == bleu([], [1]) and math.isclose(bleu([1, 1, 1, 1], [1]), math.exp((math.log(1 / 4 / 4 / 3 / 2)) / 4))
    assert bleu([1, 2, 3], [1, 2, 3]) == 1
