"""What tasks over rows of tokens do alike: hold them, batch them, say what they are."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError
from limbeck.core.files import digest
from limbeck.core.task import Batch, Facts, How, Loader, Split, Task

from ._text_loader import Change, RowsLoader
from ._tokens import Vocabulary

__all__ = ["Made", "RowsTask", "rows_of"]


class Made(NamedTuple):
    """What the files come to: fields `[M, ...]` of all rows, the rows of each split, names of what is answered, and what was done to an input."""

    fields: Mapping[str, Tensor]
    rows: Mapping[Split, Tensor]
    names: tuple[str, ...]
    vocabulary: Vocabulary
    preprocess: dict[str, Any]


class RowsTask(Task):
    """A task over rows of tokens of one length, held in memory: a batch is `input [N, T]`, `id [N]` and what else the task has, all int64."""

    def __init__(self) -> None:
        self._on: dict[torch.device, dict[str, Tensor]] = {}

    @abstractmethod
    def make(self) -> Made:
        """Read the files."""

    @abstractmethod
    def described(self) -> list[Any]:
        """The task's name, every option that says what is made of the data, but where they lie, and the digest of the files."""

    @abstractmethod
    def change(self) -> Change | None:
        """What is done to a batch as it is made."""

    @cached_property
    def made(self) -> Made:
        """What the files come to; they are read once."""
        return self.make()

    def facts(self) -> Facts:
        made = self.made
        return Facts((made.fields["input"].shape[1],), len(made.names), made.names, len(made.rows["train"]), preprocess=made.preprocess)

    def fingerprint(self) -> str:
        """The SHA-256 of the files' own, of the tokenizer, and of every option that says what is made of them; where the files lie does not matter.

        A tokenizer that is trained is trained for this.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return digest([*self.described(), self.made.vocabulary.digest])

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        made, device = self.made, how.get("device")
        if split not in made.rows:
            raise DataError(f"there is no {split} split: set `{split}` above 0, or put a file of that name beside the training file")
        fields = made.fields
        if device is not None:
            if device not in self._on:
                self._on[device] = {name: held.to(device) for name, held in fields.items()}
            fields = self._on[device]
        kept: dict[str, Any] = {"seed": 0, "rank": 0, "world": 1, "views": None, "whole": False} | {name: how[name] for name in how if name != "device"}
        return RowsLoader(fields, made.rows[split], split, change=self.change(), **kept)

    def batch(self, raw: object) -> Batch:
        """Return a mapping of tensors as it is.

        Raises:
            MismatchError: anything else, or an input that is no `[N, T]` of whole numbers.
        """
        if not isinstance(raw, Mapping) or not isinstance(x := raw.get("input"), Tensor):
            told = f"has the fields {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else f"is a {type(raw).__name__}"
            raise MismatchError(f"a batch of text is a mapping with input [N, T], token ids, and this one {told}")
        if x.ndim != 2 or x.is_floating_point():
            raise MismatchError(f"the input of a batch is {x.dtype} {list(x.shape)}; it must be token ids, whole numbers [N, T]")
        return raw


def rows_of(counts: Mapping[Split, int]) -> dict[Split, Tensor]:
    """Return the row numbers of each split, one after the other."""
    found, first = dict[Split, Tensor](), 0
    for split, count in counts.items():
        found[split] = torch.arange(first, first + count)
        first += count
    return found
