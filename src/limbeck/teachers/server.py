"""A language model behind a server, which scores the student's own text token by token.

Shapes: N rows, T tokens, V vocabulary, k likeliest tokens.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.bridges.http import Line
from limbeck.bridges.vocabulary import spelling
from limbeck.core.errors import MismatchError
from limbeck.core.files import digest
from limbeck.core.knowledge import Knowledge, Reads, TopK
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._at_once import at_once
from ._completions import Completions, distribution
from ._kept import Kept
from ._sources import Folder

__all__ = ["Server"]

_IGNORED = -100


class Server(Teacher):
    """A language model behind an OpenAI-compatible completions endpoint: the k likeliest tokens at each place of the student's text, and what is left.

    Its answer is a `TopK` at temperature 1 for each token whose label counts. A text is sent as token ids, so that the model behind the server must have the
    student's tokenizer: one that does not read the tokens where they were sent is refused. With `keep` a beginning of a text is asked about once: the tokens up
    to a place are the question, whichever row, epoch or run they come from. Where the server fails half-way, what was fetched is kept, and the next run goes
    on. It can be asked about what the student writes (scheme on_policy). Bucila et al. 2006 for labelling by a model that shows its answers alone.

    Args:
        source: url, model, top (k), api (prompt_logprobs, as vLLM has it, or echo, the legacy form), key (the environment variable of the bearer token),
            timeout, retries, backoff, per_second, parallel, request (further fields).
        keep: what was answered: `memory`, for this process, or a folder, which later runs and other processes read too; nothing where it is left out.
        version: what tells a server's model from its earlier self under one name: a folder of the one is refused for the other.

    Raises:
        MismatchError: an objective that reads layers or gradients, a server of another tokenizer, or a folder that keeps another server's answers.
        DataError: it cannot be reached, or answers with fewer log-probabilities than were asked for; answers before that are kept.

    Example:
        {kind: server, source: {url: "http://127.0.0.1:8000/v1/completions", model: large, top: 20}, keep: answers}
    """

    def __init__(self, *, source: Completions, keep: Literal["memory"] | Folder | None = None, version: str = "") -> None:
        super().__init__()
        self._source, self._keep, self._told = source, keep, version
        self._kept: Kept | None = None
        self._line: Line | None = None
        self._classes, self._end = 0, 0
        self._texts: dict[str, int] = {}

    def prepare(self, reads: Reads, task: Task) -> None:
        """Open the line and what was answered before; raises MismatchError for what it cannot show."""
        if reads.features or reads.modules or reads.input_gradient or reads.shapes or reads.outputs != {"main"}:
            raise MismatchError(
                "a server answers and shows nothing else, and an objective reads layers or gradients: take one of responses, response.divergence"
            )
        if self._line is not None:
            return
        facts = task.facts()
        self._classes = facts.classes
        told = facts.preprocess.get("tokenizer")
        if self._source.api == "echo":
            words = spelling(facts.preprocess)
            specials = {facts.class_names[one].encode().hex(): one for one, spells in enumerate(words.bytes) if spells is None}
            self._texts = specials | {spells.hex(): one for one, spells in enumerate(words.bytes) if spells}
        made_of = {"source": self._source.model_dump(mode="json"), "version": self._told, "vocabulary": None if told is None else digest(told)}
        self._kept = Kept(self._keep.path, made_of) if isinstance(self._keep, Folder) else Kept()
        self._line = self._source.line()

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        kept = self._kept
        assert kept is not None, "a teacher is prepared before it is asked"
        if "label" not in batch or batch["input"].ndim != 2 or batch["input"].is_floating_point():
            told = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
            raise MismatchError(f"a server is asked about token ids, input and label [N, T], and the batch has {told}: take a task of text, such as language")
        x, counts = batch["input"], batch["label"] != _IGNORED
        texts = _texts(batch)
        keys = [_keys(tokens) for _, _, tokens in texts]
        asked = [[place for place in range(len(tokens) - 1) if counts[row, first + place]] for row, first, tokens in texts]
        missing = [at for at, places in enumerate(asked) if kept.lacks([keys[at][place] for place in places])]
        try:
            for at, rows in at_once(missing, lambda at: self._scored(texts[at][2], asked[at]), self._source.parallel):
                kept.add([keys[at][place] for place in asked[at]], rows)
        finally:
            kept.flush()
        width = min(self._source.top, self._classes)
        found = np.zeros((*x.shape, 2 * width), np.float32)
        found[..., :width], found[..., width:] = -np.log(self._classes), np.arange(width)
        for (row, first, _), places, own in zip(texts, asked, keys, strict=True):
            if places:
                found[row, [first + place for place in places]] = kept.rows([own[place] for place in places])
        if self._keep is None:
            self._kept = Kept()
        return Knowledge({"main": self._topk(torch.from_numpy(found).to(x.device), width)}, mask=counts)

    def _scored(self, tokens: Sequence[int], places: Sequence[int]) -> np.ndarray:
        """What the server says at some places of a text, `[places, 2 k]`."""
        assert self._line is not None
        told = self._source.read(self._line.post(self._source.asks(tokens)), tokens, self._texts)
        return np.stack([distribution(told[place], self._source.top, self._classes, self._source.url) for place in places])

    def _topk(self, found: Tensor, width: int) -> TopK:
        log_probs, indices = found[..., :width], found[..., width:].long()
        if width == self._classes:
            tail = torch.full_like(log_probs[..., 0], float("-inf"))
        else:
            tail = torch.log(-torch.expm1(log_probs.double().logsumexp(-1).clamp(max=-1e-9))).float()
        return TopK(log_probs, indices, tail, 1.0, self._classes)

    def after_step(self, student: nn.Module) -> None:
        """A server does not follow."""


def _texts(batch: Batch) -> list[tuple[int, int, list[int]]]:
    """Each stretch of a batch: its row, where it begins, and its tokens, the label after the last one that counts among them."""
    made: list[tuple[int, int, list[int]]] = []
    rows, labels = batch["input"].tolist(), batch["label"].tolist()
    segments: Any = batch["segment"].tolist() if "segment" in batch else [[1] * len(row) for row in rows]
    for number, (tokens, label, segment) in enumerate(zip(rows, labels, segments, strict=True)):
        cuts = [place for place in range(len(tokens)) if place == 0 or segment[place] != segment[place - 1]]
        for first, stop in zip(cuts, [*cuts[1:], len(tokens)], strict=True):
            last = max((place for place in range(first, stop) if label[place] != _IGNORED), default=None)
            if segment[first] and last is not None:
                made.append((number, first, [*tokens[first : last + 1], label[last]]))
    return made


def _keys(tokens: Sequence[int]) -> list[bytes]:
    """16 bytes for each beginning of a text that no other has."""
    running, made = hashlib.blake2b(digest_size=16, key=b"tokens"), []
    for token in tokens:
        running.update(int(token).to_bytes(8, "little", signed=True))
        made.append(running.copy().digest())
    return made
