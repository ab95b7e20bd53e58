"""datasets: rows of a data set that was saved to disk, lies in a folder of parquet, CSV or JSON, or is fetched from the hub, split by split."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

from limbeck.core.errors import DataError, MissingDependency, RecipeError, did_you_mean
from limbeck.core.task import Split

__all__ = ["Hub", "Table"]

_NAMES: tuple[tuple[str, Split], ...] = (("train", "train"), ("validation", "validation"), ("valid", "validation"), ("dev", "validation"), ("test", "test"))
_ROLES = ("text", "prompt", "completion", "messages", "label")


class Hub(BaseModel):
    """Which configuration and revision of a data set, and which of its columns are what; a column of the same name where none is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    config: str | None = None
    revision: str | None = None
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise MissingDependency("datasets", "language", "data of kind hub") from None
    return datasets


class Table:
    """A data set's splits, of which the columns that have a role are read.

    `root`: a folder that `save_to_disk` wrote, a folder of data files, or a name of the hub's, OWNER/NAME. Code that a data set brings is never run.

    Raises:
        DataError: no such data, or none of its splits is a training one.
    """

    def __init__(self, root: str, hub: Hub) -> None:
        self._root, self._hub = root, hub

    @cached_property
    def _splits(self) -> dict[Split, Any]:
        library, path = _library(), Path(self._root).expanduser()
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        if saved and (self._hub.config or self._hub.revision):
            raise RecipeError(f"{self._root} was saved to disk, and has neither a configuration nor a revision: leave them out of `hub`")
        bars = library.utils.logging.is_progress_bar_enabled()
        library.utils.logging.disable_progress_bar()
        try:
            found = library.load_from_disk(str(path)) if saved else library.load_dataset(self._root, self._hub.config, revision=self._hub.revision)
        except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
            why = " ".join(str(error).split())[:240]
            raise DataError(f"{self._root} is no data set that can be read ({why}): name a folder that save_to_disk wrote, or a data set of the hub") from None
        finally:
            if bars:
                library.utils.logging.enable_progress_bar()
        every: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
        named: dict[Split, Any] = {}
        for name, split in _NAMES:
            if name in every:
                named.setdefault(split, every[name])
        if "train" not in named:
            raise DataError(f"{self._root} has the splits {', '.join(every) or 'none'}, and no train")
        return named

    @cached_property
    def columns(self) -> dict[str, str]:
        """What a row has to say -> the column that says it.

        Raises:
            RecipeError: a column that is not there.
        """
        there = self._splits["train"].column_names
        told = self._hub.model_dump(include=set(_ROLES))
        for role, column in told.items():
            if column is not None and column not in there:
                raise RecipeError(f"hub names the column {column!r} for {role}, and {self._root} has none{did_you_mean(column, there)}")
        named = {role: column for role, column in told.items() if column is not None}
        known = named if any(role != "label" for role in named) else {role: role for role in _ROLES if role in there and role != "label"}
        return known | {"label": told["label"] or "label"} if (told["label"] or "label") in there else known

    @property
    def where(self) -> str:
        return self._root

    def splits(self) -> tuple[Split, ...]:
        return tuple(self._splits)

    def rows(self, split: Split) -> Iterator[dict[str, Any]]:
        """Give each row, by role; a label that is a class's number as the class's name, and None where it is none."""
        table, columns = self._splits[split], self.columns
        names = getattr(table.features.get(columns.get("label", "")), "names", None)
        for row in table.select_columns([*dict.fromkeys(columns.values())]):
            told = {role: row[column] for role, column in columns.items()}
            if names is not None and "label" in told:
                told["label"] = names[told["label"]] if isinstance(told["label"], int) and told["label"] >= 0 else None
            yield told

    def digest(self) -> str:
        """Return the SHA-256 of all that is read, whatever files it is in."""
        found = hashlib.sha256()
        for split in self.splits():
            found.update(f"{split}\n".encode())
            for row in self.rows(split):
                found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return found.hexdigest()
