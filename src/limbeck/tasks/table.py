"""Classification and regression of the rows of a table: numeric and nominal columns, missing values; CSV, Adult, Covertype."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.task import Facts, How, Loader, Split, Task

from . import _adult, _covertype
from ._as_plain import AsPlain
from ._fingerprint import file_hash
from ._memory import Held, Shelf
from ._split import Splitting
from ._table_columns import MISSING, described, encoded, numbers
from ._table_csv import Cells, read_cells
from .classify import Classify
from .regression import Regression

__all__ = ["Table", "prepare"]

Data = Literal["adult", "covertype", "csv"]
_FOLDERS = {"adult": "tabular-adult", "covertype": "tabular-covertype"}
_CSV = ("train.csv", "train.csv.gz", "train.tsv")


class _Source(NamedTuple):
    """The file of the training rows, that of the test rows, how one is read, and the column that is asked for, the last one where it is None."""

    train: Path
    test: Path | None
    read: Callable[[Path], Cells]
    target: str | None


class _Loaded(NamedTuple):
    """What the files hold: rows and answers by split, the names of the classes, and what was done to the inputs."""

    shelf: Shelf
    names: tuple[str, ...]
    preprocess: dict[str, Any]


class Table(AsPlain):
    """Classification, or regression, of the rows of a table that fits in memory.

    A prepared row is `input [F]` float32. A column of numbers gives `(x - mean) / std` over the training split, 0 where it is missing, and, where it is missing
    in some training row, one more that is 1 there. A nominal column gives a one for its value among those of the training split, with one for missing where
    that occurs; a value that no training row had is all zeros. Columns of numbers come first. A batch is `input [N, F]`, `label [N]` int64 (of a number
    `[N, 1]` float32) and `id [N]`; an id is the example's row: the training file's first, then those of the test file.

    `Facts.preprocess["columns"]` says of each column its `name`, `kind` (numeric or nominal), `start` and `width` among the F features, and what prepares a raw
    row again (see `prepare`); also its distribution: quantiles of the numbers, the share of each value, the share of missing. An artifact keeps
    this of its training data, the least and the greatest value of each column among it, for `transfer.marginals` and `tasks.unseen_table`.

    Splits: `test` is the data's own test file, or fold number `fold` where there is none; `validation` is carved from the rest, and `train` is what is left.

    Args:
        data: adult (adult.data, adult.test), covertype (train.csv[.gz] or covtype.data[.gz]) or csv.
        root: the folder that holds tabular-adult/ or tabular-covertype/, or their files; for csv the file itself, or a folder with train.csv (.csv.gz, .tsv)
            and perhaps a test file of the same ending.
        target: the column that is asked for, of a csv; the last one where it is not given.
        answer: class, or number for regression.
        columns: the names of a csv's columns, where its first line does not hold them.
        nominal: columns that are nominal although they look like numbers.
        numeric: columns that must be numbers, so that a cell that is none is an error.
        drop: columns that are left out.
        missing: what a cell holds when its value is missing.
        categories: how many values a nominal column may have.
        validation: the fraction of the training data held back for validation, the same mix of classes; 0 for none.
        folds: in how many folds data without a test file are cut.
        fold: which of the folds, from 0, is the test split.
        split_seed: the seed of folds, validation and subset.
        subset: how many training examples to use, the first of a seeded order; all where it is not given.
        class_weight: one weight for each class, for the loss.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing or damaged, rows of unequal length, a single class, cells that are no numbers where there must be some.
    """

    def __init__(
        self,
        *,
        data: Data = "csv",
        root: str | None = None,
        target: str | None = None,
        answer: Literal["class", "number"] = "class",
        columns: Sequence[str] | None = None,
        nominal: Sequence[str] = (),
        numeric: Sequence[str] = (),
        drop: Sequence[str] = (),
        missing: Sequence[str] = MISSING,
        categories: int = 256,
        validation: float = 0.1,
        folds: int = 5,
        fold: int = 0,
        split_seed: int = 0,
        subset: int | None = None,
        class_weight: list[float] | None = None,
    ) -> None:
        if data not in get_args(Data):
            raise RecipeError(f"no data {data!r} for tasks.table{did_you_mean(data, get_args(Data))}")
        if not root:
            raise RecipeError(f"data {data!r} needs `root`: {'the file, or the folder with train.csv' if data == 'csv' else 'the folder that holds the data'}")
        if answer not in ("class", "number"):
            raise RecipeError(f"answer is {answer!r}; it is 'class' or 'number'")
        if data != "csv" and (target is not None or columns is not None or answer != "class"):
            raise RecipeError(f"target, columns and answer are for data 'csv'; {data} has its own: leave them out")
        self._splitting = Splitting(validation=validation, folds=folds, fold=fold, seed=split_seed, subset=subset)
        if categories < 1:
            raise RecipeError(f"categories is {categories}; it is how many values a nominal column may have, 1 or more")
        if both := sorted(set(nominal) & set(numeric)):
            raise RecipeError(f"column {both[0]!r} is in nominal and in numeric: choose one")
        if class_weight is not None and answer == "number":
            raise RecipeError("class_weight is for classes, and answer is 'number': leave one of them out")
        self._data: Data = data
        self._root = Path(root)
        self._target, self._names = target, None if columns is None else list(columns)
        self._nominal, self._numeric, self._drop, self._missing, self._most = tuple(nominal), tuple(numeric), tuple(drop), tuple(missing), categories
        self._weights = class_weight
        self._of_classes = answer == "class"
        self._plain: Classify | Regression = Classify(class_weight=class_weight) if self._of_classes else Regression()
        self.metric, self.higher_is_better = self._plain.metric, self._plain.higher_is_better

    @cached_property
    def _source(self) -> _Source:
        if self._data == "csv":
            train, test = _csv_files(self._root)
            return _Source(train, test, partial(read_cells, columns=self._names), self._target)
        folder = inner if (inner := self._root / _FOLDERS[self._data]).is_dir() else self._root
        if not folder.is_dir():
            raise DataError(f"{self._root} is no folder: set `root` to the folder that holds {_FOLDERS[self._data]}/")
        names = _adult.FILES if self._data == "adult" else _covertype.FILES
        there = [folder / name for name in names if (folder / name).is_file()]
        if self._data == "adult":
            if len(there) < 2:
                raise DataError(f"{folder} has not both of {' and '.join(names)}: they are UCI's Adult")
            return _Source(there[0], there[1], _adult.read_adult, _adult.TARGET)
        if not there:
            raise DataError(f"{folder} has none of {', '.join(names)}: one of them is Covertype")
        return _Source(there[0], None, _covertype.read_covertype, _covertype.TARGET)

    @cached_property
    def _loaded(self) -> _Loaded:
        source = self._source
        cells, tests = _joined(source)
        target = source.target if source.target is not None else list(cells)[-1]
        for option, names in (("target", (target,)), ("drop", self._drop), ("nominal", self._nominal), ("numeric", self._numeric)):
            for name in names:
                if name not in cells:
                    raise DataError(f"{option} names the column {name!r}, which {source.train} has not{did_you_mean(name, cells)}")
        if target in self._drop:
            raise RecipeError(f"drop names {target!r}, which is the target: it is no input anyhow")
        answers = cells.pop(target)
        if (unknown := np.isin(answers, self._missing)).any():
            raise DataError(f"row {int(np.flatnonzero(unknown)[0]) + 1} has no {target!r}, and it is what is asked for: drop the rows without it")
        inputs = {name: held for name, held in cells.items() if name not in self._drop}
        if not inputs:
            raise DataError(f"{source.train} has no column beside the target {target!r}: there is nothing to learn from")
        labels, names, strata = self._answers(answers, target)
        rows = self._splitting.rows(strata, tests, own=f"{self._root} has a test file")
        columns = described(inputs, rows["train"].numpy(), self._missing, nominal=self._nominal, numeric=self._numeric, most=self._most)
        preprocess = {"kind": "table", "columns": columns, "missing": list(self._missing), "target": target, "tests_from": len(labels) - tests if tests else 0}
        made = encoded(inputs, preprocess, str(source.train))
        return _Loaded(Shelf(Held(made, labels, torch.zeros(1), None), rows), names, preprocess)

    def _answers(self, answers: np.ndarray, target: str) -> tuple[Tensor, tuple[str, ...], Tensor]:
        """Return the labels, the names of the classes, and what splits are stratified by."""
        if not self._of_classes:
            found = numbers(answers, np.zeros(len(answers), dtype=np.bool_), target)
            return torch.from_numpy(found.astype(np.float32))[:, None], (target,), torch.zeros(len(answers), dtype=torch.long)
        names, labels = np.unique(answers, return_inverse=True)
        if len(names) < 2:
            raise DataError(f"every row's {target!r} is {str(names[0])!r}: there must be two classes or more")
        if len(names) > self._most:
            raise DataError(
                f"the target {target!r} has {len(names)} classes, more than the {self._most} that categories allows: answer: number, or raise categories"
            )
        if self._weights is not None and len(self._weights) != len(names):
            raise RecipeError(f"class_weight has {len(self._weights)} weights, and {target!r} has {len(names)} classes: give one for each")
        order = _by_value(names.tolist())
        strata = torch.from_numpy(np.argsort(order)[labels])
        return strata, tuple(names[order].tolist()), strata

    def facts(self) -> Facts:
        shelf, names, preprocess = self._loaded
        return Facts((shelf.held.images.shape[1],), len(names), names, len(shelf.rows["train"]), preprocess=preprocess)

    def fingerprint(self) -> str:
        """The SHA-256 of the files' own and of every option that says what is made of them; where the files lie does not matter."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        source = self._source
        options = [self._data, source.target, self._of_classes, self._names, self._nominal, self._numeric, self._drop, self._missing, self._most]
        options += self._splitting.options
        files = hashlib.sha256()
        for path in (source.train, source.test):
            files.update(b"" if path is None else file_hash(path).encode())
        return digest({"task": "table", "options": options, "files": files.hexdigest()})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        return self._loaded.shelf.loader(split, **how)

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return self._splitting.splits()


def prepare(rows: "str | Path | Sequence[Mapping[str, Any]]", preprocess: Mapping[str, Any]) -> Tensor:
    """Return raw rows as the model saw its training data: `[N, F]` float32.

    `rows`: a file with a line of names, or a mapping from column to value for each row, None for what is missing; columns that the model does not know are
    passed over. `preprocess` is `Facts.preprocess`, which an artifact keeps in its spec.

    Raises:
        DataError: a file that is missing, damaged or empty, a cell that is no number in a column of numbers.
        MismatchError: a column that is not there, or a model that takes no table.
    """
    if preprocess.get("kind") != "table" or "columns" not in preprocess:
        raise MismatchError(f"this model takes no named columns: its preprocessing is {preprocess.get('kind') or 'not known'}; give it tensors from Python")
    if isinstance(rows, (str, Path)):
        return encoded(read_cells(Path(rows)), preprocess, str(rows))
    if not rows:
        raise DataError("there is nothing to prepare: give one row or more")
    names = [column["name"] for column in preprocess["columns"]]
    for number, row in enumerate(rows, 1):
        if absent := [name for name in names if name not in row]:
            raise MismatchError(f"row {number} has no {absent[0]!r}; it has {', '.join(map(str, row))}: give every column, None for what is missing")
    cells = {name: np.array([preprocess["missing"][0] if row[name] is None else str(row[name]).strip() for row in rows], np.str_) for name in names}
    return encoded(cells, preprocess, "a row")


def _by_value(names: list[str]) -> list[int]:
    """The places of names in the order of their numbers, where all of them are numbers, and else in that of their letters."""
    try:
        return sorted(range(len(names)), key=lambda place: float(names[place]))
    except ValueError:
        return sorted(range(len(names)), key=lambda place: names[place])


def _csv_files(root: Path) -> tuple[Path, Path | None]:
    if root.is_file():
        return root, None
    if not root.is_dir():
        raise DataError(f"{root} is neither a file nor a folder: for data 'csv' `root` is the file, or a folder with train.csv")
    for name in _CSV:
        if (root / name).is_file():
            test = root / name.replace("train", "test")
            return root / name, test if test.is_file() else None
    raise DataError(f"{root} has none of {', '.join(_CSV)}: name the file itself, root: FOLDER/FILE")


def _joined(source: _Source) -> tuple[Cells, int]:
    """Read both files; return the rows of both, the test file's last, and how many of these there are."""
    cells = source.read(source.train)
    if source.test is None:
        return cells, 0
    tests = source.read(source.test)
    if tests.keys() != cells.keys():
        strange = sorted(tests.keys() ^ cells.keys())[0]
        raise DataError(f"the column {strange!r} is in one of {source.train} and {source.test.name} alone: both must have the same")
    return {name: np.concatenate([held, tests[name]]) for name, held in cells.items()}, len(next(iter(tests.values())))
