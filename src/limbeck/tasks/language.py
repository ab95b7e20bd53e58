"""Causal language modelling: the next token of every token, on text files and conversations."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.bridges.datasets import Hub
from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch, Split

from ._chat import chatted
from ._pack import Packing, Rows, Sequenced, packed
from ._text_answers import asked, costs, label_of, measured
from ._text_documents import Apart, Document, check_turn
from ._text_loader import Change
from ._text_source import Corpus
from ._text_task import Made, RowsTask, rows_of
from ._tokens import BPE, Kind, Tokens, Vocabulary, as_tokens, vocabulary, vocabulary_of

__all__ = ["Language", "vocabulary_of"]

Data = Literal["tinyshakespeare", "wikitext2", "text", "jsonl", "hub"]

_BPE = BPE()


class Language(RowsTask):
    """Causal language modelling: `loss_t = -log p(x_{t+1} | x_1 .. x_t)` in nats, one for each token that counts.

    A batch is `input [N, T]`, `label [N, T]` (the token after each; -100 where it does not count), `id [N]`, the row's number, and, where documents share a
    row or are padded on the left, `segment [N, T]` (the document's number in its row, 0 for padding, which attention must not cross) and `position [N, T]`
    (within the document). The model is called as `model(input, segment=..., position=...)`, without what is not there, and gives a `Hidden`, logits
    `[N, T, V]`, or something with `logits`. To whoever knows a teacher's answers to `views` a batch also tells `document` and `place [N, T]`: the document's
    number over all splits, and the token's place in it, -1 for padding. Every document begins and ends with a token of its own; the end is learnt, also where
    padding is the same token.

    Every token of every document is predicted once, from at most `context` tokens before it, those of its own piece; so `loss`, and its exponential, the
    perplexity, are of windows without overlap. `Facts.preprocess` holds the vocabulary, and each split's count of tokens and bytes, so that nats a token
    become bits a byte: `loss / log(2) * tokens / bytes`; and `seen`, on which it depends what stands before a token in its context.

    Splits: files of their own, else the last shares of the training text. A BPE learns from the training split alone.

    Args:
        data: tinyshakespeare (input.txt), wikitext2 (train.txt, valid.txt, test.txt; without train.txt it is fitted on test.txt and tested on valid.txt, which
            is no WikiText-2 result), text (a .txt file or a folder of them), jsonl (lines of text, of prompt and completion, or of messages) or hub (rows of
            these, of a data set of the library datasets: a folder that save_to_disk wrote, one of data files, or OWNER/NAME).
        root: the folder that holds text-tinyshakespeare/ or text-wikitext2/, or their files; the file or folder of text or jsonl, where a folder's train,
            validation (or valid) and test files are the splits.
        tokenizer: {kind: bpe, size}, {kind: bytes}, or {kind: file, root: tokenizer.json, eos: its end token, begin, pad}, or {kind: hf, root} of a model.
        context: T, the tokens of a row.
        packing: stream (all documents in one line, cut every T tokens), isolated (documents side by side, none sees another) or padded (one to a row).
        padding: on which side, where packing is padded.
        documents: where a text is divided: files, headings (of the first level), paragraphs or lines; headings for wikitext2, else files, where not given.
        turn: how a message is written around its role and content, or template: as the tokenizer's own chat template has it.
        validation: the share of the training text, before its end, that is held back; 0 for none. A file of its own goes before it.
        test: the share at its end; 0 for none.
        hub: of data hub, which configuration, revision and columns: {config, revision, text, prompt, completion, messages, label: COLUMN}.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing, damaged or empty, or lines that say nothing.
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
        packing: Packing = "stream",
        padding: Literal["left", "right"] = "right",
        documents: Apart | None = None,
        turn: str = "{role}: {content}\n",
        validation: float = 0.05,
        test: float = 0.05,
        hub: Hub | None = None,
    ) -> None:
        super().__init__()
        for name, given, kinds in (("data", data, Data), ("packing", packing, Packing), ("padding", padding, Literal["left", "right"])):
            if given not in get_args(kinds):
                raise RecipeError(f"no {name} {given!r} for tasks.language{did_you_mean(str(given), get_args(kinds))}")
        if context < 1:
            raise RecipeError(f"context is {context}; it is how many tokens a row has, 1 or more")
        if padding == "left" and packing != "padded":
            raise RecipeError(f"padding is left, and packing {packing}: only packing padded has rows to pad on the left")
        check_turn(turn)
        self._corpus = Corpus(data, root, apart=documents, turn=turn, validation=validation, test=test, hub=hub)
        self._tokenizer: Kind = as_tokens(tokenizer)
        self._context = context
        self._packing: Packing = packing
        self._padding: Literal["left", "right"] = padding

    def make(self) -> Made:
        found = self._corpus.read()
        words = vocabulary(self._tokenizer, (piece.text for document in found["train"] for piece in document), ("eos",))
        laid: dict[Split, Rows] = {}
        tokens: dict[str, int] = {}
        first = 0
        for split, held in found.items():
            sequences = _sequences(held, words)
            tokens[split] = sum(int(one.counts[1:].sum()) for one in sequences)
            laid[split] = packed(sequences, self._context, self._packing, words.roles.get("pad", words.roles["eos"]), self._padding, first)
            first += len(held)
        fields = {
            name: torch.cat([part for rows in laid.values() if (part := getattr(rows, name)) is not None])
            for name in Rows._fields if getattr(laid["train"], name) is not None
        }  # fmt: skip
        told: dict[str, Any] = {"kind": "language", "tokenizer": words.told(), "context": self._context, "packing": self._packing, "padding": self._padding}
        told |= {"documents": {split: len(held) for split, held in found.items()}, "tokens": tokens}
        told["bytes"] = {split: sum(len(piece.text.encode()) for one in held for piece in one if piece.counts) for split, held in found.items()}
        told["seen"] = {
            "corpus": digest([*self._corpus.options, self._corpus.hash()]), "tokenizer": words.digest, "context": self._context,
            "packing": "stream" if self._packing == "stream" else "documents apart",
        }  # fmt: skip
        if self._corpus.note is not None:
            told["note"] = self._corpus.note
        return Made(fields, rows_of({split: len(rows.input) for split, rows in laid.items()}), words.names, words, told)

    def described(self) -> list[Any]:
        return ["language", self._context, self._packing, self._padding, *self._corpus.options, self._corpus.hash()]

    def change(self) -> Change | None:
        return None

    def splits(self) -> tuple[Split, ...]:
        return self._corpus.splits()

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return asked(model, batch, ("segment", "position"), self.made.vocabulary.size)

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return costs(knowledge, label_of(batch))

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        """`loss`, in nats, and `accuracy` of the next token, of the tokens that count alone."""
        cost, right = measured(knowledge, label_of(batch))
        return {"loss": cost, "accuracy": right}


def _sequences(documents: list[Document], words: Vocabulary) -> list[Sequenced]:
    """Each document as tokens, with its begin and its end, which counts; a conversation by a template begins and ends as that has it."""
    begin, end = words.roles.get("begin", words.roles["eos"]), words.roles["eos"]
    ids = iter(words.encode([piece.text for document in documents for piece in document if piece.messages is None]))
    made = []
    for document in documents:
        if (messages := document[0].messages) is not None:
            made.append(chatted(messages, words))
            continue
        tokens, counts = [np.array([begin], np.int32)], [np.zeros(1, np.bool_)]
        for piece in document:
            own = np.append(next(ids), np.int32(end)) if piece.ends else next(ids)
            tokens.append(own)
            counts.append(np.full(len(own), piece.counts))
        made.append(Sequenced(np.concatenate([*tokens, np.array([end], np.int32)]), np.concatenate([*counts, np.ones(1, np.bool_)])))
    return made
