"""Masked language modelling: tokens that were hidden, from all that stands around them.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019, arXiv:1810.04805, sec. 3.1.

Shapes: N rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from limbeck.bridges.datasets import Hub
from limbeck.core import draw
from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch, Split

from ._pack import IGNORED, framed
from ._text_answers import asked, costs, label_of, measured
from ._text_documents import Apart
from ._text_loader import Change
from ._text_source import Corpus, Data
from ._text_task import Made, RowsTask, rows_of
from ._tokens import BPE, Kind, Tokens, Vocabulary, as_tokens, vocabulary

__all__ = ["Masked", "masked"]

_CHOICE, _WHAT = 11, 12  # what a hash is for

_BPE = BPE()


class Masked(RowsTask):
    """Masked language modelling: `loss_t = -log p(x_t | what is left of x)` in nats, one for each token that was chosen.

    A row is a begin token, text and an end token, padded on the right. Each token of the text is chosen with probability `share`, and of those chosen eight in
    ten become the mask, one in ten any other token, one in ten stay; which, is a pure function of (seed, view, id, position). A batch is `input [N, T]`,
    `attention [N, T]` (1 for what is no padding), `label [N, T]` (the token that was there; -100 where none was chosen) and `id [N]`. The model is called as
    `model(input, attention=...)` and gives a `Hidden`, logits `[N, T, V]`, or something with `logits`. Splits other than train are masked once.

    Args:
        data: tinyshakespeare, wikitext2, text or jsonl, as tasks.language has them, or sst2 or tsv, as tasks.text has them, sentence by sentence;
            or hub, as tasks.language has it.
        root: the folder that holds the data, or the file itself.
        tokenizer: {kind: bpe, size}, {kind: bytes}, or {kind: file, root: tokenizer.json, eos, begin, pad, mask: its special tokens}, or {kind: hf, root}.
        context: T, the tokens of a row, begin and end among them.
        packing: stream (all text in one line, cut to rows) or padded (a document to a row, a longer one cut into several); where it is not given, padded for
            sst2 and tsv, else stream.
        documents: where a text is divided: files, headings, paragraphs or lines; headings for wikitext2, else files, where not given.
        share: the probability that a token is chosen.
        validation: the share of the training text, before its end, that is held back; 0 for none. A file of its own goes before it.
        test: the share at its end; 0 for none.
        hub: of data hub, which configuration, revision and columns: {config, revision, text, prompt, completion, messages, label: COLUMN}.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing, damaged or empty.
    """

    metric = "loss"
    higher_is_better = False

    def __init__(
        self,
        *,
        data: Data = "text",
        root: str | None = None,
        tokenizer: Tokens = _BPE,
        context: int = 128,
        packing: Literal["stream", "padded"] | None = None,
        documents: Apart | None = None,
        share: float = 0.15,
        validation: float = 0.05,
        test: float = 0.05,
        hub: Hub | None = None,
    ) -> None:
        super().__init__()
        if data not in get_args(Data):
            raise RecipeError(f"no data {data!r} for tasks.masked{did_you_mean(str(data), get_args(Data))}")
        if packing not in (None, "stream", "padded"):
            raise RecipeError(f"packing is {packing!r} for tasks.masked; it is 'stream' or 'padded'")
        if context < 3:
            raise RecipeError(f"context is {context}; a row has a begin, an end, and a token between them: 3 or more")
        if not 0 < share <= 1:
            raise RecipeError(f"share is {share:g}; it is the probability that a token is chosen, above 0 and at most 1")
        self._corpus = Corpus(data, root, apart=documents, turn="{role}: {content}\n", validation=validation, test=test, hub=hub)
        self._tokenizer: Kind = as_tokens(tokenizer)
        self._context, self._share = context, share
        self._stream = packing == "stream" if packing is not None else data not in ("sst2", "tsv")

    def make(self) -> Made:
        found = self._corpus.read()
        words = vocabulary(self._tokenizer, (piece.text for document in found["train"] for piece in document), ("pad", "begin", "eos", "mask"))
        pieces: dict[Split, list[npt.NDArray[np.int32]]] = {}
        for split, held in found.items():
            pieces[split] = _cut(words, ["".join(piece.text for piece in one) for one in held], self._context, self._stream)
        roles = words.roles
        every = [piece for some in pieces.values() for piece in some]
        fields = framed(every, self._context, begin=roles["begin"], eos=roles["eos"], pad=roles["pad"])
        told: dict[str, Any] = {"kind": "masked", "tokenizer": words.told(), "context": self._context, "share": self._share}
        told["seen"] = {
            "corpus": digest([*self._corpus.options, self._corpus.hash()]), "tokenizer": words.digest, "context": self._context,
            "packing": "stream" if self._stream else "padded", "share": self._share,
        }  # fmt: skip
        if self._corpus.note is not None:
            told["note"] = self._corpus.note
        return Made(fields, rows_of({split: len(some) for split, some in pieces.items()}), words.names, words, told)

    def described(self) -> list[Any]:
        return ["masked", self._context, self._stream, self._share, *self._corpus.options, self._corpus.hash()]

    def change(self) -> Change | None:
        words = self.made.vocabulary
        return partial(masked, share=self._share, mask=words.roles["mask"], specials=tuple(words.roles.values()), vocabulary=words.size)

    def splits(self) -> tuple[Split, ...]:
        return self._corpus.splits()

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return asked(model, batch, ("attention",), self.made.vocabulary.size)

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return costs(knowledge, label_of(batch))

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        """`loss`, in nats, and `accuracy`, of the tokens that were chosen alone."""
        cost, right = measured(knowledge, label_of(batch))
        return {"loss": cost, "accuracy": right}


def masked(
    batch: dict[str, Tensor], seed: int, view: int, *, share: float, mask: int, specials: tuple[int, ...], vocabulary: int
) -> dict[str, Tensor]:  # fmt: skip
    """Choose tokens of `input [N, T]` and hide them; `label` is what they were.

    Special tokens and padding are never chosen; the token that takes a chosen one's place is drawn from all that are not `specials`, itself among them.
    """
    tokens = batch["input"]
    length = tokens.shape[1]
    counters = batch["id"][:, None] * length + torch.arange(length, device=tokens.device)
    choice, what = (draw.bits(counters, draw.key(seed, view, use)) for use in (_CHOICE, _WHAT))
    known = sorted(set(specials))
    special = torch.isin(tokens, torch.tensor(known, device=tokens.device))
    chosen = (draw.uniform(choice, 1) < share) & ~special
    kind = draw.uniform(choice, 0)
    others = draw.below(what, vocabulary - len(known), 1)
    for one in known:
        others = others + (others >= one)  # the special tokens are stepped over
    hidden = torch.where(kind < 0.8, mask, torch.where(kind < 0.9, others, tokens))
    return {**batch, "input": torch.where(chosen, hidden, tokens), "label": torch.where(chosen, tokens, IGNORED)}


def _cut(words: Vocabulary, texts: Sequence[str], context: int, stream: bool) -> list[npt.NDArray[np.int32]]:
    """Return texts as pieces that leave room for a begin and an end; as a stream they are first joined by ends."""
    end, room = words.roles["eos"], context - 2
    ids = words.encode(texts)
    if stream:
        ids = [np.concatenate([np.append(one, np.int32(end)) for one in ids])[:-1]]
    return [one[at : at + room] for one in ids for at in range(0, len(one), room)]
