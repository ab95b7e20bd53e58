"""What is kept of a teacher's answers for each token: what each way costs in bytes, what it errs by in nats, and which of them answers a wish.

The error is the mean KL(p || p~) in nats over a sample of tokens, p the teacher's probabilities and p~ those that a reader has: of states at the temperature of
the wish; of the likeliest classes with what is left spread evenly over all others, which is the most that a reader knows. Of draws it is the mean KL(p~ || p),
the noise of one token's draws, since their average over tokens is right and KL(p || p~) infinite.

Shapes: n tokens, D width of a state, V classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Reads, Response, TopK

from ._keep import Auto, HiddenStates, Kept, Likeliest, WholeLogits
from ._store_columns import WITNESSED, Recording, columns, heads, knowledge, pieces

__all__ = ["Measured", "error_of", "measured", "picked", "stand_in"]


@dataclass(frozen=True)
class Measured:
    """What a way of keeping answers costs and errs by."""

    keep: Kept
    bytes: float
    nats: float

    def __str__(self) -> str:
        told = self.keep.model_dump(exclude={"kind", "temperature", "tail"})
        return f"{' '.join([self.keep.kind, *map(str, told.values())])}: {self.bytes:.4g} bytes a token, {self.nats:.3g} nats"


def candidates(answer: Response, temperature: float) -> Iterator[Kept]:
    """The ways to keep such an answer, of which a wish chooses: not draws, whose error is another thing, and which teach but one divergence."""
    if isinstance(answer, Hidden):
        yield from (HiddenStates(dtype="float32"), HiddenStates(dtype="bfloat16"), HiddenStates(dtype="int8"))
    else:
        yield WholeLogits()
    most = min(answer.classes - 1, 1024)
    powers = [1 << power for power in range(11) if 1 << power <= most]
    yield from (Likeliest(k=k, temperature=temperature) for k in powers)


@torch.no_grad()
def measured(said: Knowledge, keep: Kept, recording: Recording, counters: Tensor, tokens: int, index: float, temperature: float) -> Measured:
    """Keep the answers of a sample `[n]` in one way and read them again; `tokens` in all share the head and what else is stored once, `index` bytes of it."""
    how = recording.model_copy(update={"keep": keep})
    ids = counters.cpu().numpy()
    found, about = columns(said, ids, how, counters)
    head = heads(said, keep)
    size = sum(value.itemsize * value[0].size for value in found.values()) + 4 / WITNESSED
    size += (index + sum(value.numel() * value.itemsize for value in head.values())) / max(tokens, 1)
    device = counters.device
    head = {name: value.to(device) for name, value in head.items()}
    kept = knowledge(found.__getitem__, about, found, Reads(), keep, device, head).answer
    return Measured(keep, size, error_of(said.answer, kept, getattr(keep, "temperature", temperature)))


@torch.no_grad()
def error_of(answer: Response, kept: Response, temperature: float) -> float:
    """Return the mean error in nats of what is read in the place of an answer `[n]`."""
    total = 0.0
    for at, piece in pieces(answer):
        log_p = (piece.logits.double() / temperature).log_softmax(-1)
        total += float(_apart(log_p, _part(kept, at), temperature).sum())
    return max(0.0, total / max(answer.predictions.numel(), 1))


def _part(kept: Response, at: slice) -> Response:
    if isinstance(kept, Hidden):
        return replace(kept, states=kept.states[at])
    if isinstance(kept, Dense):
        return replace(kept, logits=kept.logits[at])
    return replace(kept, log_probs=kept.log_probs[at], indices=kept.indices[at], log_tail=kept.log_tail[at])


def _apart(log_p: Tensor, kept: Response, temperature: float) -> Tensor:
    if not isinstance(kept, TopK):
        return _kl(log_p, (kept.logits.double() / temperature).log_softmax(-1))
    log_probs = kept.log_probs.double()
    if bool((kept.log_tail == float("-inf")).all()):
        return _kl(log_probs, log_p.gather(-1, kept.indices))
    others = (kept.log_tail.double() - torch.tensor(float(max(kept.classes - kept.indices.shape[-1], 1))).log()).unsqueeze(-1)
    return _kl(log_p, others.expand_as(log_p).scatter(-1, kept.indices, log_probs))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == float("-inf"), 0.0)).sum(-1)


def picked(found: Sequence[Measured], wish: Auto) -> Measured:
    """Return the way that errs least within the bytes, or takes the fewest within the nats.

    Raises:
        RecipeError: none does, naming the closest.
    """
    if wish.bytes is not None:
        within = [one for one in found if one.bytes <= wish.bytes]
        if not within:
            raise RecipeError(f"keep.bytes is {wish.bytes:g}, and nothing is kept in so few; the closest is {min(found, key=_cost)}: allow that many")
        return min(within, key=lambda one: (one.nats, one.bytes))
    assert wish.nats is not None
    within = [one for one in found if one.nats <= wish.nats]
    if not within:
        raise RecipeError(f"keep.nats is {wish.nats:g}, and nothing errs by so little; the closest is {min(found, key=_error)}: allow that much")
    return min(within, key=lambda one: (one.bytes, one.nats))


def _cost(one: Measured) -> tuple[float, float]:
    return one.bytes, one.nats


def _error(one: Measured) -> tuple[float, float]:
    return one.nats, one.bytes


def stand_in(said: Knowledge, recording: Recording) -> Recording:
    """Return a recording whose wish is granted, for a check that records nothing: by states where there are some, else by the likeliest classes."""
    if not isinstance(wish := recording.keep, Auto):
        return recording
    usual: Any = next(candidates(said.answer, wish.temperature))
    return recording.model_copy(update={"keep": usual})
