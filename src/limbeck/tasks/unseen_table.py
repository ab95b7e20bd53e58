"""A table without its training rows: an artifact tells its columns, their statistics and the classes; a labelled test file may be there, to measure with."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from limbeck.core.artifact import Artifact
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.files import digest
from limbeck.core.lookup import build
from limbeck.core.task import Facts, How, Loader, Split, Task

from ._adult import read_adult
from ._as_plain import AsPlain
from ._fingerprint import file_hash
from ._memory import Held, Later, Shelf
from ._table_columns import encoded
from ._table_csv import read_cells
from .classify import Classify

__all__ = ["TestedRows", "UnseenTable"]


class TestedRows(BaseModel):
    """Labelled rows to measure with: a csv with a line of names, or adult.test."""

    __test__ = False  # no test of pytest's
    model_config = ConfigDict(extra="forbid", frozen=True)
    data: Literal["csv", "adult"] = "csv"
    root: str


class UnseenTable(AsPlain):
    """A table without its training rows: what an artifact that was trained on them keeps of them is all that is known, and no training file is opened.

    The training split is drawn anew in each epoch from the statistics of the artifact's columns, each by itself, as `transfer.marginals` does, without labels.
    There is no validation split, so that the last epoch is what is kept. The test split, where one is named, is opened only to measure.

    Args:
        root: the artifact's folder, such as runs/adult/stages/teacher.
        examples: how many rows an epoch has.
        test: labelled rows to measure with: {data: csv, root: file} or {data: adult, root: file}.

    Raises:
        RecipeError: options that cannot be meant.
        ArtifactError: no artifact.
        MismatchError: an artifact of something else than classes of a table.
        DataError: a test file that is missing or damaged, or of other classes.
    """

    def __init__(self, *, root: str, examples: int = 10_000, test: TestedRows | None = None) -> None:
        if examples < 1:
            raise RecipeError(f"examples is {examples}; it is how many rows an epoch has, 1 or more")
        self._root, self._examples, self._test = Path(root), examples, test
        self._plain = Classify()

    @cached_property
    def _spec(self) -> Mapping[str, Any]:
        spec = Artifact.open(self._root, verify=False).spec
        told = spec.get("preprocess", {})
        if not told.get("columns") or "link" in spec:
            what = f"answers are {spec['link']}" if "link" in spec else f"preprocessing is {told.get('kind') or 'not known'}"
            raise MismatchError(f"{self._root} was not trained on classes of a table with columns: its {what}; name an artifact that tasks.table made")
        return spec

    def facts(self) -> Facts:
        spec = self._spec
        return Facts(tuple(spec["in_shape"]), spec["classes"], tuple(spec["class_names"]), self._examples, labelled=False, preprocess=spec["preprocess"])

    @cached_property
    def _shelf(self) -> Shelf:
        assert self._test is not None
        path, told, names = Path(self._test.root), self._spec["preprocess"], self._spec["class_names"]
        cells = (read_adult if self._test.data == "adult" else read_cells)(path)
        if told["target"] not in cells:
            raise DataError(f"{path} has no column {told['target']!r}, which is what is asked for; it has {', '.join(cells)}")
        answers = cells[told["target"]]
        if strange := sorted(set(answers.tolist()) - set(names)):
            raise DataError(f"{path} has the class {strange[0]!r}, and the artifact knows {', '.join(names)}")
        place = {name: number for number, name in enumerate(names)}
        labels = torch.from_numpy(np.array([place[one] for one in answers.tolist()], dtype=np.int64))
        return Shelf(Held(encoded(cells, told, str(path)), labels, torch.zeros(1), None), {"test": torch.arange(len(labels))})

    def fingerprint(self) -> str:
        """The SHA-256 of the test file, and of all that the artifact tells; where they lie does not matter."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        spec = {name: self._spec[name] for name in ("in_shape", "classes", "class_names", "preprocess")}
        test = [] if self._test is None else [self._test.data, file_hash(Path(self._test.root))]
        return digest({"task": "unseen_table", "spec": spec, "examples": self._examples, "test": test})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        if split == "train":
            return build("transfer", "marginals", {}, None).loader(self, **how)
        if split not in self.splits():
            raise DataError(f"a table without training rows has no {split} split: it has {', '.join(self.splits())}")
        return Later(self._shelf.loader(split, **how), self._spec["preprocess"]["tests_from"])

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return ("train",) if self._test is None else ("train", "test")
