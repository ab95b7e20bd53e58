"""What a model says of each token, and its cross-entropy with what comes: states and a head are multiplied out some tokens at a time.

Shapes: N rows, T tokens, D width of the states, V vocabulary, n tokens that count.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, TopK
from limbeck.core.task import Batch

from ._adapter import HasLogits
from ._pack import IGNORED

__all__ = ["asked", "called", "costs", "label_of", "measured"]

_LOGITS = 1 << 24
"""Logits that are held at once."""


def asked(model: nn.Module, batch: Batch, fields: tuple[str, ...], vocabulary: int) -> Knowledge:
    """Call the model on `input [N, T]` and those of `fields` that are there, by their names; labels say which tokens count.

    Raises:
        MismatchError: no response of `[N, T]` predictions over the vocabulary, or over a larger one, padded.
    """
    x = batch["input"]
    output = called(model, batch, fields, vocabulary)
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, (Tensor, Dense, Hidden)) and isinstance(output, HasLogits):
        output = output.logits
    said = Dense(output) if isinstance(output, Tensor) else output
    if not isinstance(said, (Dense, Hidden)):
        raise MismatchError(f"the model gives a {type(output).__name__}; it must give a Hidden, logits [N, T, V], or something with `logits`")
    if said.predictions != x.shape or said.classes < vocabulary:
        raise MismatchError(
            f"the model gives {[*said.predictions, said.classes]} for {list(x.shape)} tokens of a vocabulary of {vocabulary}: "
            "it must answer each token, over that vocabulary at least"
        )
    return Knowledge({"main": said}, mask=batch["label"] != IGNORED if "label" in batch else None)


def called(model: nn.Module, batch: Batch, fields: tuple[str, ...], vocabulary: int) -> object:
    """Return what the model gives for `input [N, T]` and those of `fields` that are there.

    Raises:
        MismatchError: tokens that the model cannot embed; a GPU says so in its own way.
    """
    x = batch["input"]
    try:
        return model(x, **{name: batch[name] for name in fields if name in batch})
    except IndexError as error:  # what torch raises for a token out of range
        told = f"tokens go up to {int(x.max())}, of a vocabulary of {vocabulary}"
        raise MismatchError(f"{told}, and the model cannot read them ({error}): build it with vocabulary: {vocabulary}, or more") from error


def label_of(batch: Batch) -> Tensor:
    """Return a batch's labels `[N, T]`, or say that they are missing."""
    if "label" not in batch:
        raise MismatchError(f"the batch has no labels (fields {', '.join(batch)}), and the loss of each token needs them")
    return batch["label"]


def costs(knowledge: Knowledge, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token `[N, T]` in nats, 0 with a graph where the label is -100; logits beyond 2^24 are computed again going back."""
    chosen = labels != IGNORED
    each = _by_chunks(knowledge, labels, chosen, _cost)[0]
    return each.new_zeros(labels.shape).masked_scatter(chosen, each)


@torch.no_grad()
def measured(knowledge: Knowledge, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each token that counts its cross-entropy and whether the likeliest one came, `[n]` float32 each."""
    cost, right = _by_chunks(knowledge, labels, labels != IGNORED, lambda z, y: (*_cost(z, y), (z.argmax(-1) == y).float()))
    return cost, right


def _cost(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (F.cross_entropy(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, labels, reduction="none"),)


def _by_chunks(knowledge: Knowledge, labels: Tensor, chosen: Tensor, read: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `read` makes of the logits and labels of the tokens that are chosen."""
    said, wanted = knowledge.answer, labels[chosen]
    if isinstance(said, TopK):
        raise MismatchError(f"the answer is {said}: the loss of a label needs whole logits, or states and a head")
    if isinstance(said, Dense):
        return read(said.logits[chosen], wanted)
    rows = max(1, _LOGITS // said.classes)
    states = said.states[chosen]
    if len(states) <= rows:
        return read(replace(said, states=states).logits, wanted)

    def part(some: Tensor, theirs: Tensor) -> tuple[Tensor, ...]:
        return read(replace(said, states=some).logits, theirs)

    parts = [
        checkpoint(part, some, theirs, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else part(some, theirs)
        for some, theirs in zip(states.split(rows), wanted.split(rows), strict=True)
    ]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
