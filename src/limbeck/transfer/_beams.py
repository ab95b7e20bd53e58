"""Beam search, and which of a beam is nearest to a reference.

Shapes: M stretches to write, P tokens of the longest prompt, k hypotheses of each, L tokens written at most, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.bridges.writing import Reader
from limbeck.core.errors import RecipeError

__all__ = ["bleu", "searched"]

_GRAMS = 4


def searched(read: Reader, prompts: Tensor, room: Tensor, size: int, end: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each stretch the k = `size` likeliest continuations that a beam of that size finds: tokens `[M, k, L]`, lengths `[M, k]`, log-probabilities.

    A hypothesis is over with its `end`, which counts, or when `room [M]` is full; the best comes first. Log-probabilities `[M, k]` are sums, not divided by
    lengths.

    Raises:
        RecipeError: a beam wider than the vocabulary.
    """
    count, most, device = len(prompts), int(room.max()), prompts.device
    tokens = prompts.new_zeros(count, size, most)
    lengths = room[:, None].repeat(1, size)
    scores = torch.zeros(count, size, dtype=torch.float64, device=device)
    over = torch.zeros(count, size, dtype=torch.bool, device=device)
    of = torch.arange(count, device=device)
    new = prompts
    for step in range(most):
        logits = read(new)
        assert isinstance(logits, Tensor)
        log_p = logits.double().log_softmax(-1)
        classes = log_p.shape[-1]
        if step == 0:
            if size > classes:
                raise RecipeError(f"a beam of {size} is wider than the vocabulary of {classes}: lower its size")
            found = log_p.topk(size)
            parent = torch.zeros_like(found.indices)
            best, token = found.values, found.indices
        else:
            log_p = log_p.view(len(of), size, classes)
            stays = torch.full_like(log_p, -math.inf)
            stays[..., 0] = 0.0  # what is over goes on as it is, once
            found = (scores[of][..., None] + torch.where(over[of][..., None], stays, log_p)).flatten(1).topk(size)
            parent, token, best = found.indices // classes, found.indices % classes, found.values
        held = of[:, None]
        was_over = over[held, parent]
        tokens[of], lengths[of], scores[of] = tokens[held, parent], lengths[held, parent], best
        tokens[of, :, step] = torch.where(was_over, 0, token)
        ended = torch.zeros_like(was_over) if end is None else ~was_over & (token == end)
        lengths[of] = torch.where(ended, step + 1, lengths[of])
        over[of] = was_over | ended
        left = (~over[of].all(1) & (step + 1 < room[of])).nonzero()[:, 0]
        if not len(left):
            break
        base = left[:, None] * (1 if step == 0 else size)
        read.take((base + parent[left]).flatten())
        of, new = of[left], tokens[of[left], :, step].flatten()[:, None]
    return tokens, lengths, scores


def bleu(made: Sequence[int], reference: Sequence[int]) -> float:
    """Return the smoothed BLEU of one sequence against one reference: from 0 to 1, n-grams of up to four tokens, one added to the counts of n above one.

    Papineni et al., ACL 2002; the smoothing is that of Lin and Och, "ORANGE", COLING 2004.

    >>> bleu([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    1.0
    """
    if not made or not reference:
        return 0.0
    logs = 0.0
    for n in range(1, _GRAMS + 1):
        ours, theirs = (Counter(tuple(one[at : at + n]) for at in range(len(one) - n + 1)) for one in (made, reference))
        hits, total, more = sum((ours & theirs).values()), sum(ours.values()), int(n > 1)
        if hits + more == 0:
            return 0.0
        logs += math.log((hits + more) / (total + more))
    return math.exp(logs / _GRAMS + min(0.0, 1 - len(reference) / len(made)))
