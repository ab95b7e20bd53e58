"""Answers for each token: which tokens of a batch count, where each stands in its document, what the teacher saw before it.

A batch `[N, T]` tells by `document` and `place` (-1 for padding) where each token comes from; without them a row is a document, `id`, and its columns are the
places. What a token's answer depends on beside the teacher is told by a witness: a hash of all tokens before it that attention reaches, or, where rows are
documents, of the whole row. Shapes: N rows, T tokens, n of them that count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.draw import bits, key
from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Response, TopK
from limbeck.core.task import Batch

__all__ = ["Where", "among", "by_token", "counters", "counting", "each", "flattened", "joined", "otherwise", "seen", "spread", "where"]

_IGNORED = -100
_SEEN, _ONE = 19, 21  # what a hash is for
Ints = npt.NDArray[np.int64]


class Where(NamedTuple):
    """Views, documents and places of the tokens that count, `[n]` each."""

    views: Ints
    documents: Ints
    places: Ints


def by_token(batch: Batch) -> bool:
    """Whether a batch is rows of tokens, each of which is answered."""
    x = batch.get("input")
    if x is None or x.ndim != 2 or x.is_floating_point():
        return False
    return "document" in batch or ("label" in batch and batch["label"].shape == x.shape and not batch["label"].is_floating_point())


def counting(batch: Batch) -> Tensor:
    """Return which tokens `[N, T]` count: those that have a label, where there are labels, and are of a document."""
    x = batch["input"]
    chosen = batch["label"] != _IGNORED if "label" in batch else torch.ones_like(x, dtype=torch.bool)
    return chosen & (batch["document"] >= 0) if "document" in batch else chosen


def where(batch: Batch, chosen: Tensor, views: int) -> Where:
    """Return where the chosen tokens stand.

    Raises:
        MismatchError: a batch that does not say which document is which, or, of several views, which one it shows.
    """
    if "document" not in batch and "id" not in batch:
        raise MismatchError(
            f"what was recorded is found by document and place, and the batch has neither these nor 'id' (fields {', '.join(batch)}): give it `document` and "
            "`place` [N, T], or a row's number as `id` [N]; limbeck's own loaders do when they are told views="
        )
    if "view" not in batch and views > 1:
        raise MismatchError(
            f"{views} views of each token are recorded, and the batch does not say which it shows (fields {', '.join(batch)}): give it a field 'view', "
            "int64 for each row; limbeck's own loaders do when they are told views="
        )
    x = batch["input"]
    places = batch["place"] if "document" in batch else torch.arange(x.shape[1], device=x.device).expand_as(x)
    documents = batch["document"] if "document" in batch else batch["id"][:, None].expand_as(x)
    shown = batch["view"][:, None].expand_as(x) if "view" in batch else torch.zeros_like(x)
    found = torch.stack([shown[chosen], documents[chosen], places[chosen]]).cpu().numpy()
    return Where(*found)


def counters(at: Where) -> Tensor:
    """Return a number for each token `[n]`, of its view, document and place alone: what is drawn of it depends on nothing else."""
    views, documents, places = (torch.from_numpy(one) for one in at)
    return bits(bits(documents, key(_ONE)) + places + (views << 32), key(_ONE, 1))


def seen(tokens: Tensor, batch: Batch) -> Tensor:
    """Return 32 bits for each of `tokens [N, T]`, int64: the same for the same tokens before it, at the same distances, in what attention reaches."""
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if "document" not in batch:
        return bits(tokens + (place << 32), key(_SEEN)).sum(1, keepdim=True).bitwise_and(0xFFFFFFFF).expand_as(tokens)
    first = torch.zeros_like(tokens)
    if "segment" in batch:
        segment = batch["segment"]
        fresh = torch.cat([torch.ones_like(segment[:, :1], dtype=torch.bool), segment[:, 1:] != segment[:, :-1]], 1)
        first = torch.where(fresh, place, 0).cummax(1).values
    hashed = bits(tokens + (place - first << 32), key(_SEEN))
    upto = hashed.cumsum(1)
    return (upto - (upto - hashed).gather(1, first)).bitwise_and(0xFFFFFFFF)


def flattened(said: Knowledge, chosen: Tensor) -> Knowledge:
    """Return what was said of the chosen tokens alone, `[n, ...]`.

    Raises:
        MismatchError: an answer or a layer that has no value for each token.
    """
    outputs: dict[str, Response] = {}
    for name, one in said.outputs.items():
        if one.predictions != chosen.shape:
            raise MismatchError(
                f"the teacher's output {name!r} is of {list(one.predictions)} predictions for {list(chosen.shape)} tokens: each must be answered"
            )
        outputs[name] = each(one, lambda value: value[chosen])
    for path, value in said.features.items():
        if value.shape[:2] != chosen.shape:
            raise MismatchError(
                f"the teacher's layer {path!r} gives {list(value.shape)} for {list(chosen.shape)} tokens: only one that gives [N, T, ...] is recorded"
            )
    return Knowledge(outputs, {path: value[chosen] for path, value in said.features.items()})


def spread(said: Knowledge, chosen: Tensor) -> Knowledge:
    """Return what was said of the chosen tokens `[n, ...]` in their places `[N, T, ...]`; of the others nothing, and the mask says so."""
    whole = bool(chosen.all())

    def back(value: Tensor) -> Tensor:
        if whole:
            return value.reshape(*chosen.shape, *value.shape[1:])
        found = value.new_zeros(*chosen.shape, *value.shape[1:])
        found[chosen] = value
        return found

    outputs = {name: each(one, back) for name, one in said.outputs.items()}
    return Knowledge(outputs, {path: back(value) for path, value in said.features.items()}, chosen)


def joined(parts: Sequence[Any]) -> Response:
    """Return answers of several lots of tokens, of one form and head, as one."""
    first = parts[0]
    named = ("states",) if isinstance(first, Hidden) else ("logits",) if isinstance(first, Dense) else ("log_probs", "indices", "log_tail")
    return replace(first, **{name: torch.cat([getattr(one, name) for one in parts]) for name in named})


def among(keys: Ints, known: Ints) -> npt.NDArray[np.bool_]:
    """Return which of `keys [n]` are in `known`, which is in order."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def each(one: Response, change: Callable[[Tensor], Tensor]) -> Response:
    """Return an answer with what it has for each token changed."""
    if isinstance(one, Hidden):
        return replace(one, states=change(one.states))
    if isinstance(one, Dense):
        return replace(one, logits=change(one.logits))
    assert isinstance(one, TopK)
    return replace(one, log_probs=change(one.log_probs), indices=change(one.indices), log_tail=change(one.log_tail))


def otherwise(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """Return in what tokens were seen otherwise when they were recorded than now, naming both; None where it is all the same."""
    for name in sorted(found.keys() | asked.keys(), key=lambda one: (one not in ("corpus", "tokenizer"), one)):
        if (then := found.get(name)) != (now := asked.get(name)):
            short = [one[:12] if isinstance(one, str) and len(one) == 64 else one for one in (then, now)]
            return f"it was recorded of {name} {short[0]}, and {name} {short[1]} is asked for"
    return None
