"""A causal language model writes: where a batch's prompts end, tokens drawn one after another, and the batch with what was written in it.

A batch is as `tasks.language` gives it: `input` and `label [N, T]`, -100 where a label does not count, `segment [N, T]` where documents share a row or are
padded on the left. A stretch is what attention stays within: a row, or a document in it.

Shapes: N rows, T tokens, M stretches that are written, P tokens of the longest prompt, L tokens written at most, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.core.draw import bits, key, uniform
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Response
from limbeck.core.task import Batch, Task

__all__ = ["IGNORED", "Reader", "Stretches", "check_prompt", "check_sampling", "coins", "drawn", "put", "reader", "stretches", "write"]

IGNORED = -100
"""The label of a position that does not count."""
_LASTING = frozenset({"segment", "position", "id", "view"})
"""Fields of a batch that hold whatever is written into it."""
_STRETCH, _PLACE = 0x7374, 0x706C


def check_prompt(prompt: float, tokens: int | None) -> None:
    """Refuse a share of a row that is no prompt, or a number of tokens that writes nothing."""
    if not 0 < prompt < 1:
        raise RecipeError(f"prompt is {prompt:g}; it is the share of a plain text that is read before the rest is written, above 0 and below 1")
    if tokens is not None and tokens < 1:
        raise RecipeError(f"tokens is {tokens}; it is how many are written at most, 1 or more")


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse numbers that no token can be drawn by."""
    if not (math.isfinite(temperature) and temperature >= 0) or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise RecipeError(f"temperature is {temperature:g}, top_k {top_k} and top_p {top_p}: 0 or more, 1 or more, and a share above 0 and at most 1")


@dataclass(frozen=True)
class Stretches:
    """The stretches of a batch that have something to write: the `row` of each, its `start` and `length` there, tokens of its `prompt`, `room` to write."""

    row: Tensor
    start: Tensor
    length: Tensor
    prompt: Tensor
    room: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def prompts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompts `[M, P]`, padded on the left, and `segment [M, P]`, 0 there and 1 in the prompt, of inputs `[N, T]`."""
        width = int(self.prompt.max())
        place = torch.arange(width, device=x.device) - (width - self.prompt[:, None])
        real = place >= 0
        found = x[self.row[:, None], (self.start[:, None] + place.clamp(min=0)).clamp(max=x.shape[1] - 1)]
        return torch.where(real, found, found[:, -1:]), real.long()


def stretches(batch: Batch, share: float, tokens: int | None = None) -> Stretches:
    """Find what is to be written: after the first tokens of a stretch whose labels do not count; of one that counts from its beginning, after `share` of it.

    Where rows have segments, a stretch is written over as far as it goes; else as far as the row does. `tokens` bounds it further.

    Raises:
        MismatchError: a batch that is no rows of tokens with labels.
    """
    x, label = batch.get("input"), batch.get("label")
    if x is None or x.ndim != 2 or x.is_floating_point() or label is None or label.shape != x.shape:
        told = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
        raise MismatchError(f"text is written after token ids, input and label [N, T], and the batch has {told}: take a task of text, such as language")
    count, width = x.shape
    counts = label != IGNORED
    place = torch.arange(width, device=x.device).expand(count, width)
    if (segment := batch.get("segment")) is None:
        row = torch.arange(count, device=x.device)
        start, room_end = torch.zeros_like(row), torch.full_like(row, width)
        number = torch.where(counts.any(1, keepdim=True), row[:, None], -1).expand(count, width)
        total = count
        length = torch.where(counts, place + 1, 0).amax(1)
    else:
        fresh = torch.cat([torch.ones_like(segment[:, :1], dtype=torch.bool), segment[:, 1:] != segment[:, :-1]], 1) & (segment != 0)
        row, start = fresh.nonzero(as_tuple=True)
        total = len(row)
        number = torch.where(segment != 0, fresh.flatten().cumsum(0).view(count, width) - 1, -1)
        length = torch.zeros(total, dtype=torch.int64, device=x.device).index_add_(0, number[number >= 0], torch.ones_like(number[number >= 0]))
        room_end = start + length
    first = torch.full((total,), width, dtype=torch.int64, device=x.device)
    some = counts & (number >= 0)
    first = first.scatter_reduce(0, number[some], place[some], "amin")
    there = first < width
    row, start, length, room_end, first = (one[there] for one in (row, start, length, room_end, first))
    prompt = torch.where(first > start, first - start + 1, (length * share).round().long().clamp(min=1))
    room = room_end - start - prompt + 1
    return Stretches(row, start, length, prompt, room if tokens is None else room.clamp(max=tokens))


class Reader(Protocol):
    """What reads rows piece by piece and says what comes after the last token read."""

    def __call__(self, tokens: Tensor) -> Tensor | Response:
        """Read the next tokens `[M, l]`; give logits `[M, V]` or a response of `[M]` predictions."""
        ...

    def take(self, rows: Tensor) -> None:
        """Go on with these rows `[m]`."""
        ...


@runtime_checkable
class _Keeps(Protocol):
    """A model that keeps what it has read, such as `models.gpt`."""

    def reading(self, segment: Tensor) -> Reader: ...


class _Rereading:
    """A model that keeps nothing and reads every token again."""

    def __init__(self, model: nn.Module, task: Task, segment: Tensor) -> None:
        self._model, self._task, self._segment = model, task, segment
        self._position = (segment.cumsum(1) - 1).clamp(min=0)
        self._seen = segment[:, :0]

    def __call__(self, tokens: Tensor) -> Tensor | Response:
        self._seen = torch.cat([self._seen, tokens], 1)
        end = self._seen.shape[1]
        batch = {"input": self._seen, "segment": self._segment[:, :end], "position": self._position[:, :end]}
        said = self._task.forward(self._model, batch).answer
        if isinstance(said, Hidden):
            return Hidden(said.states[:, -1], said.weight, said.bias, said.scale, said.softcap, said.link)
        assert isinstance(said, Dense), "a model's own answer is whole"
        return said.logits[:, -1]

    def take(self, rows: Tensor) -> None:
        segment, position, seen = (one.index_select(0, rows) for one in (self._segment, self._position, self._seen))
        begun = int((segment[:, : seen.shape[1]] != 0).any(0).int().argmax())  # what is padding for all of them is left behind
        self._segment, self._position, self._seen = segment[:, begun:], position[:, begun:], seen[:, begun:]


def reader(model: nn.Module, task: Task, segment: Tensor, classes: int) -> Reader:
    """Return what reads rows by a model and answers with float32 logits `[M, classes]`; one that keeps keys and values reads each token once.

    `segment [M, P + L]`: 0 for padding on the left, 1 for all that may come.
    """
    inner = model.reading(segment) if isinstance(model, _Keeps) else _Rereading(model, task, segment)
    return _Whole(inner, classes)


class _Whole:
    """A reader's answers as logits over the vocabulary, what a padded head has beyond it left out."""

    def __init__(self, inner: Reader, classes: int) -> None:
        self._inner, self._classes = inner, classes
        self.take = inner.take

    def __call__(self, tokens: Tensor) -> Tensor:
        said = self._inner(tokens)
        logits = said if isinstance(said, Tensor) else Dense(said.logits).logits if isinstance(said, (Dense, Hidden)) else None
        assert logits is not None, "a model's own answer is whole"
        return logits[:, : self._classes].float()


def coins(batch: Batch, some: Stretches, seed: int) -> Callable[[int], Tensor]:
    """Return `step -> u [M]`, numbers in (0, 1) that depend on (seed, row id, place in the row) and on nothing else."""
    ids = batch["id"] if "id" in batch else torch.arange(len(batch["input"]), device=some.row.device)
    own = bits(ids[some.row], key(seed, _STRETCH))
    first = some.start + some.prompt

    def toss(step: int) -> Tensor:
        return uniform(bits(own + first + step, key(seed, _PLACE)), 1)

    return toss


def drawn(logits: Tensor, u: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Draw a token from each row of logits `[M, V]` by a number u in (0, 1) `[M]`: the first whose cumulative probability reaches u.

    `temperature` 0 takes the likeliest; `top_k` leaves that many of the likeliest, and `top_p` the fewest whose probabilities come to it together (Holtzman et
    al. 2020, arXiv:1904.09751).

    >>> drawn(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([0.3, 0.3])).tolist()
    [0, 1]
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.double() / temperature).softmax(-1)
    if top_k is not None and top_k < p.shape[-1]:
        p = torch.zeros_like(p).scatter(-1, (index := p.topk(top_k).indices), p.gather(-1, index))
    if top_p is not None and top_p < 1:
        order = p.sort(-1, descending=True)
        ahead = order.values.cumsum(-1) - order.values
        p = torch.zeros_like(p).scatter(-1, order.indices, torch.where(ahead < top_p * p.sum(-1, keepdim=True), order.values, 0.0))
    total = p.cumsum(-1)
    place = torch.searchsorted(total, (u.double() * total[:, -1])[:, None])[:, 0]
    last = p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(-1)  # rounding must not lead behind the last that can come
    return torch.minimum(place, last)


def write(read: Reader, prompts: Tensor, room: Tensor, choose: Callable[[Tensor, int, Tensor], Tensor], end: int | None) -> tuple[Tensor, Tensor]:
    """Let a reader write after prompts `[M, P]`; return the tokens `[M, L]` and how many each stretch has, its end counted; what stands behind means nothing.

    `choose(logits [m, V], step, of [m])` gives the next token `[m]` of stretches `of`; one stops after its `end`, or when its `room [M]` is full.
    """
    of = torch.arange(len(prompts), device=prompts.device)
    made, length, new = prompts.new_zeros(len(prompts), int(room.max())), room.clone(), prompts
    for step in range(made.shape[1]):
        logits = read(new)
        assert isinstance(logits, Tensor)
        token = choose(logits, step, of)
        made[of, step] = token
        over = step + 1 >= room[of]
        if end is not None:
            length[of[token == end]] = step + 1
            over = over | (token == end)
        if bool(over.any()):
            left = (~over).nonzero()[:, 0]
            if not len(left):
                break
            read.take(left)
            of, token = of[left], token[left]
        new = token[:, None]
    return made[:, : int(length.max())], length


def put(batch: Batch, some: Stretches, tokens: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Return the batch with tokens `[M, L]` written after their prompts, `lengths [M]` of each: they are input and label; no other label counts.

    What the batch told of the text that stood there, such as where it comes from or what a teacher reads in its place, is left out.
    """
    x, label = batch["input"].clone(), torch.full_like(batch["label"], IGNORED)
    step = torch.arange(tokens.shape[1], device=x.device)
    at = (some.start + some.prompt - 1)[:, None] + step
    real = step < lengths[:, None]
    rows = some.row[:, None].expand_as(at)
    label[rows[real], at[real]] = tokens[real]
    fits = step < (lengths.minimum(some.room - 1))[:, None]  # the last label of a full stretch is no input
    x[rows[fits], at[fits] + 1] = tokens[fits]
    kept = {name: value for name, value in batch.items() if name in _LASTING}
    return {**kept, "input": x, "label": label}
