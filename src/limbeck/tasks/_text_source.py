"""Which files a corpus is in, and its documents by split."""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from limbeck.bridges.datasets import Table
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Split

from ._fingerprint import files_hash
from ._text_documents import Apart, Document, Piece, cut, divided, read_conversations, read_text
from ._text_hub import as_hub, documents_of
from ._text_table import find_sentences, read_sentences

__all__ = ["Corpus", "Data"]

Data = Literal["tinyshakespeare", "wikitext2", "text", "jsonl", "sst2", "tsv", "hub"]
_FOLDERS = {"tinyshakespeare": "text-tinyshakespeare", "wikitext2": "text-wikitext2"}
Files = dict[Split, list[Path]]


class Corpus:
    """The documents of a corpus by split; nothing is read before it is asked for.

    A split has files of its own (train.txt, validation.txt or valid.txt, test.txt), or is the last share of the training text: `test` at its very end,
    `validation` before it, both off what is left of training.
    """

    def __init__(
        self, data: Data, root: str | None, *, apart: Apart | None, turn: str, validation: float, test: float, hub: Any = None
    ) -> None:  # fmt: skip
        if not root:
            raise RecipeError(f"data {data!r} needs `root`: the file, or the folder that holds the data")
        if apart is not None and data in ("jsonl", "sst2", "tsv", "hub"):
            raise RecipeError(f"documents is {apart!r}, and of data {data!r} each {'row' if data == 'hub' else 'line'} is a document: leave it out")
        read = as_hub(data, hub)
        self._table = None if read is None else Table(root, read)
        if min(validation, test) < 0 or validation + test >= 1:
            raise RecipeError(f"validation is {validation:g} and test {test:g}; they are shares of the text, 0 or more, and together less than 1")
        self._data, self._root, self._turn = data, Path(root), turn
        self._apart: Apart = apart or ("headings" if data == "wikitext2" else "files")
        self._shares: dict[Split, float] = {"test": test, "validation": validation}  # in the order in which they are cut off

    @cached_property
    def _files(self) -> Files:
        if self._data in ("sst2", "tsv"):
            return {split: [path] for split, path in find_sentences(self._root, self._data).items()}
        if self._data in _FOLDERS:
            inner = self._root / _FOLDERS[self._data]
            return _known(inner if inner.is_dir() else self._root, self._data)
        return _found(self._root, ".jsonl" if self._data == "jsonl" else ".txt")

    @property
    def _there(self) -> Collection[Split]:
        """The splits that have rows or files of their own."""
        return self._files if self._table is None else self._table.splits()

    def splits(self) -> tuple[Split, ...]:
        return ("train", *(split for split in ("validation", "test") if split in self._there or self._shares[split]))

    @property
    def options(self) -> list[object]:
        """All but where the files lie."""
        return [self._data, self._apart, self._turn, *self._shares.values()]

    def hash(self) -> str:
        if self._table is not None:
            return self._table.digest()
        return files_hash({f"{split}/{at}": path for split, paths in self._files.items() for at, path in enumerate(paths)})

    @property
    def note(self) -> str | None:
        """What must be said beside every figure."""
        swapped = self._data == "wikitext2" and self._files["train"][0].name == "test.txt"
        return "fitted on WikiText-2's test.txt and evaluated on its valid.txt: no WikiText-2 result" if swapped else None

    def read(self) -> dict[Split, list[Document]]:
        """Return the documents of each split, in their order.

        Raises:
            DataError: a file that cannot be read or is empty, or a split that is left without a document.
        """
        made: dict[Split, list[Document]] = (
            {split: [one for path in paths for one in self._documents(path)] for split, paths in self._files.items()}
            if self._table is None
            else documents_of(self._table, self._turn)
        )
        for split, share in self._shares.items():
            if split not in made and share:
                left = 1 - (self._shares["test"] if split == "validation" and "test" not in self._there else 0)
                made["train"], made[split] = cut(made["train"], share / left, split)
        return {split: made[split] for split in self.splits()}

    def _documents(self, path: Path) -> list[Document]:
        if self._data in ("sst2", "tsv"):
            return [(Piece(sentence),) for sentence, _ in read_sentences(path)]
        return read_conversations(path, self._turn) if self._data == "jsonl" else divided(read_text(path), self._apart)


def _known(folder: Path, data: str) -> Files:
    """The files of a data set by their own names; of WikiText-2 without its train.txt, test.txt is trained on and valid.txt tested on."""
    if data == "tinyshakespeare":
        wanted: Mapping[Split, str] = {"train": "input.txt"}
    elif (folder / "train.txt").is_file():
        wanted = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
    else:
        wanted = {"train": "test.txt", "test": "valid.txt"}
    for name in wanted.values():
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}: set `root` to the folder that holds {_FOLDERS[data]}/")
    return {split: [folder / name] for split, name in wanted.items()}


def _found(root: Path, ending: str) -> Files:
    if root.is_file():
        return {"train": [root]}
    if not root.is_dir():
        raise DataError(f"{root} is neither a file nor a folder: `root` is a {ending} file, or a folder of them")
    if not (root / f"train{ending}").is_file():
        if not (files := sorted(root.rglob(f"*{ending}"))):
            raise DataError(f"{root} holds no {ending} file: name the file itself, root: FOLDER/FILE")
        return {"train": files}
    found: Files = {"train": [root / f"train{ending}"]}
    names: tuple[tuple[Split, str], ...] = (("validation", "validation"), ("validation", "valid"), ("test", "test"))
    for split, name in names:
        if split not in found and (root / f"{name}{ending}").is_file():
            found[split] = [root / f"{name}{ending}"]
    return found
