"""Classification of sentences: SST-2, or a table of sentences and labels of one's own.

Shapes: N sentences, T tokens, C classes.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.bridges.datasets import Hub, Table
from limbeck.core.errors import DataError, RecipeError, did_you_mean
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Split

from ._adapter import as_logits
from ._fingerprint import files_hash
from ._pack import framed
from ._split import carve, subset_rows
from ._text_answers import called
from ._text_hub import as_hub, sentences_of
from ._text_loader import Change
from ._text_table import find_sentences, read_sentences
from ._text_task import Made, RowsTask, rows_of
from ._tokens import BPE, File, Kind, Pretrained, Role, Tokens, as_tokens, vocabulary
from .classify import Classify

__all__ = ["Text"]

Data = Literal["sst2", "tsv", "hub"]

_BPE = BPE()


class Text(RowsTask):
    """Classification of sentences, which are held in memory as tokens.

    A row is a begin token, the sentence and an end token, cut to `context` tokens and padded on the right. A batch is `input [N, T]`, `attention [N, T]` (1
    for what is no padding), `label [N]` and `id [N]`, the row's number over all files. The model is called as `model(input, attention=...)` and gives logits
    `[N, C]`; how many tokens there are to embed, `vocabulary`, it must be told.

    Args:
        data: sst2 (Socher et al. 2013: train.tsv, dev.tsv, test.tsv), tsv (one's own; each line is sentence<TAB>label) or hub (rows of a data
            set of the library datasets: a folder that save_to_disk wrote, one of data files, or OWNER/NAME).
        root: the folder that holds text-sst2/, or its files; of tsv the file, or a folder with train.tsv and perhaps dev.tsv (or validation.tsv) and test.tsv.
        tokenizer: {kind: bpe, size}, {kind: bytes}, or {kind: file, root: tokenizer.json, eos, begin, pad: its special tokens}, or {kind: hf, root}.
        context: T, the tokens of a row, begin and end among them; what is longer loses its last words.
        trim: cut each batch to its longest sentence, which is faster and makes batches of several shapes.
        validation: the fraction of the training sentences held back, the same mix of classes, where there is no file of it; 0 for none.
        test: the same for the test split.
        split_seed: the seed of both, and of subset.
        hub: of data hub, which configuration, revision and columns: {config, revision, text, label: COLUMN}.
        subset: how many training sentences to use, the first of a seeded order; all where it is not given.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing or damaged, a single class, a label that training never saw.
    """

    def __init__(
        self,
        *,
        data: Data = "sst2",
        root: str | None = None,
        tokenizer: Tokens = _BPE,
        context: int = 64,
        trim: bool = False,
        validation: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
        subset: int | None = None,
        hub: Hub | None = None,
    ) -> None:
        super().__init__()
        if data not in get_args(Data):
            raise RecipeError(f"no data {data!r} for tasks.text{did_you_mean(str(data), get_args(Data))}")
        if not root:
            raise RecipeError(f"data {data!r} needs `root`: the file, or the folder that holds the data")
        if context < 3:
            raise RecipeError(f"context is {context}; a row has a begin, an end, and a token between them: 3 or more")
        if min(validation, test) < 0 or validation + test >= 1:
            raise RecipeError(f"validation is {validation:g} and test {test:g}; they are shares of the sentences, 0 or more, and together less than 1")
        if subset is not None and subset < 1:
            raise RecipeError(f"subset is {subset}; it is a number of training sentences, 1 or more")
        self._data, self._root = data, Path(root)
        read = as_hub(data, hub)
        self._table = None if read is None else Table(root, read)
        self._tokenizer: Kind = as_tokens(tokenizer)
        self._context, self._trim, self._seed, self._subset = context, trim, split_seed, subset
        self._shares: dict[Split, float] = {"test": test, "validation": validation}
        self._plain = Classify()

    def make(self) -> Made:
        read = self._sentences()
        sentences = [sentence for held in read.values() for sentence, _ in held]
        names = sorted({label for _, label in read["train"]})
        if len(names) < 2:
            raise DataError(f"every training sentence's label is {names[0]!r}: there must be two classes or more")
        place = {name: index for index, name in enumerate(names)}
        for split, held in read.items():
            if strange := sorted({label for _, label in held} - place.keys()):
                raise DataError(f"the {split} split has the label {strange[0]!r}, which no training sentence has{did_you_mean(strange[0], names)}")
        labels = torch.tensor([place[label] for held in read.values() for _, label in held])
        rows = self._rows({split: len(held) for split, held in read.items()}, labels)
        spare: tuple[Role, ...] = () if isinstance(self._tokenizer, (File, Pretrained)) else ("mask",)  # so that the vocabulary is that of tasks.masked
        words = vocabulary(self._tokenizer, (sentences[row] for row in rows["train"].tolist()), ("pad", "begin", "eos", *spare))
        ids, room, roles = words.encode(sentences), self._context - 2, words.roles
        fields = framed([one[:room] for one in ids], self._context, begin=roles["begin"], eos=roles["eos"], pad=roles["pad"])
        shortened = sum(len(one) > room for one in ids)
        told: dict[str, Any] = {"kind": "text", "tokenizer": words.told(), "context": self._context, "vocabulary": words.size, "shortened": shortened}
        return Made({**fields, "label": labels}, rows, tuple(names), words, told)

    def _rows(self, counts: dict[Split, int], labels: Tensor) -> dict[Split, Tensor]:
        """The rows of each split, those that have no file carved from the training file's."""
        rows, left = rows_of(counts), 1.0
        for split, share in self._shares.items():
            if split not in rows and share:
                rows["train"], rows[split] = carve(labels, rows["train"], share / left, self._seed)
                left -= share
        if self._subset is not None:
            rows["train"] = subset_rows(rows["train"], self._subset, self._seed)
        return rows

    def _sentences(self) -> dict[Split, list[tuple[str, str]]]:
        if self._table is not None:
            return sentences_of(self._table)
        return {split: read_sentences(path) for split, path in self._files.items()}

    @cached_property
    def _files(self) -> dict[Split, Path]:
        return find_sentences(self._root, self._data)

    def described(self) -> list[Any]:
        files = self._table.digest() if self._table is not None else files_hash({str(split): path for split, path in self._files.items()})
        return ["text", self._data, self._context, self._trim, *self._shares.values(), self._seed, self._subset, files]

    @cached_property
    def _hubs(self) -> tuple[Split, ...]:
        """The splits of a data set that have labels."""
        assert self._table is not None
        return tuple(sentences_of(self._table))

    def change(self) -> Change | None:
        return _trimmed if self._trim else None

    def splits(self) -> tuple[Split, ...]:
        there = self._files if self._table is None else self._hubs
        return ("train", *(split for split in ("validation", "test") if split in there or self._shares[split]))

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        said = called(model, batch, ("attention",), self.made.vocabulary.size)
        return Knowledge({"main": Dense(as_logits(said, len(batch["input"])))})

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return self._plain.loss(knowledge, batch)

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        return self._plain.scores(knowledge, batch)


def _trimmed(batch: dict[str, Tensor], _seed: int, _view: int) -> dict[str, Tensor]:
    """Leave out what is padding in every sentence of a batch."""
    longest = int(batch["attention"].sum(1).max())
    return {**batch, "input": batch["input"][:, :longest], "attention": batch["attention"][:, :longest]}
