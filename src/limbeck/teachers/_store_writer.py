"""A store of records, written: shard after shard beside its place, sealed by a manifest, then renamed into its place.

While it is written it lies in `NAME.partial/`, where nothing opens it: `plan.json` says what it will be, `journal.jsonl` has a line for each shard that is
whole, written after the shard was. A writer that is killed leaves it; the next one with the same plan takes over what the journal tells and the checksums
confirm, cuts off the rest, and goes on. One writer at a time: the folder is locked.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError, MismatchError
from limbeck.core.files import atomic_write, digest, lock, read_json, sha256, storage, write_json

from ._store import FORMAT, record_count, row_bytes, shard_sums

__all__ = ["Index", "Writer", "writing"]

Index = Callable[[Path, npt.NDArray[np.int64], Mapping[str, Any]], dict[str, Any]]
"""Makes what records are found by, when all are there: (folder, keys `[R, 2]`, plan) -> what `store.json` says of it."""

SHARD_BYTES, SHARD_SECONDS = 64 << 20, 10.0
"""When a shard is closed: what a kill may cost."""
_KEYS = "keys"
_OWN = {_KEYS: {"file": "keys.bin", "dtype": "<i8", "shape": [2], "every": 1}}
"""The ids and views of the records in the order in which they came: needed until the index is made of them."""


@contextmanager
def writing(folder: Path, plan: Mapping[str, Any], index: Index | None = None) -> "Iterator[Writer]":
    """Give a writer of the store `folder`; what it holds stays in `folder.partial` until `seal`, also when the block ends by an error.

    Records are found by example and view unless there is another `index`.

    Raises:
        LockedError: another process is writing it.
        StorageError: a full disk, or a folder that cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    with storage(folder), lock(partial):
        if (partial / "plan.json").is_file() and read_json(partial / "plan.json") != plan:
            for path in partial.iterdir():  # of another teacher or other data
                if path.name != ".lock":
                    path.unlink()
        write_json(partial / "plan.json", dict(plan))
        writer = Writer(folder, partial, plan, index or _by_example)
        try:
            yield writer
        finally:
            writer.close()


class Writer:
    """Records added batch by batch; `keys [R, 2]` are the ids and views of those that are there already, taken over from a writer that was killed."""

    def __init__(self, folder: Path, partial: Path, plan: Mapping[str, Any], index: Index) -> None:
        self._folder, self._partial, self._plan, self._by = folder, partial, plan, index
        self._columns: dict[str, dict[str, Any]] = {}
        self._about: dict[str, Any] = {}
        self._shards: list[dict[str, Any]] = []
        self._streams: dict[str, BinaryIO] = {}
        self._sums: dict[str, Any] = {}
        self._records = self._bytes = 0
        self._began = time.monotonic()
        self.keys: npt.NDArray[np.int64] = np.zeros((0, 2), np.int64)
        if (partial / "store.json").is_file():  # sealed, and killed before it was moved
            self._shards = read_json(partial / "store.json")["shards"]
        elif (partial / "schema.json").is_file():
            self._take_over()

    @property
    def sealed(self) -> bool:
        """Whether every record is there already, and the store has but to be moved to its place."""
        return (self._partial / "store.json").is_file()

    def _take_over(self) -> None:
        told = read_json(self._partial / "schema.json")
        self._columns, self._about = told["columns"], told["about"]
        lines = list(_journal(self._partial / "journal.jsonl"))
        good = len(lines)
        for name, column in self._columns.items():
            ends = [0, *(record_count(column, line["records"]) * row_bytes(column) for line in lines)]
            sums = shard_sums(self._partial / column["file"], [end - start for start, end in pairwise(ends)])
            same = [line["sha256"][name] == found for line, found in zip(lines, sums, strict=True)]
            good = min(good, next((place for place, one in enumerate(same) if not one), len(same)))
        self._shards = lines[:good]
        self._records = self._shards[-1]["records"] if self._shards else 0
        atomic_write(self._partial / "journal.jsonl", b"".join(_line(one) for one in self._shards))
        self._open_streams()
        self.keys = np.fromfile(self._partial / "keys.bin", "<i8").reshape(-1, 2)

    def _open_streams(self) -> None:
        for name, column in self._columns.items():
            path = self._partial / column["file"]
            path.touch()
            os.truncate(path, record_count(column, self._records) * row_bytes(column))
            self._streams[name], self._sums[name] = path.open("ab"), hashlib.sha256()

    def add(
        self,
        ids: npt.NDArray[np.int64],
        views: npt.NDArray[np.int64],
        values: Mapping[str, npt.NDArray[Any]],
        about: Mapping[str, Any],
        *,
        every: Mapping[str, int],
    ) -> None:
        """Add records: `ids [N]`, `views [N]` and a value of each column `[N, ...]`, of which a column named in `every` keeps each so many-th; `about` is what
        a reader must know to make sense of them.

        Raises:
            MismatchError: columns of other shapes than before.
        """
        if not self._streams:
            self._begin(values, about, every)
        for name, value in values.items():
            told = self._columns[name]
            if list(value.shape[1:]) != told["shape"] or len(value) != len(ids) or values.keys() | _OWN.keys() != self._columns.keys():
                raise MismatchError(f"the teacher's {name} is {list(value.shape)} for {len(ids)} examples, and was [N, {told['shape']}] before: it must be one")
        for name, value in {**values, _KEYS: np.stack([ids, views], 1)}.items():
            told = self._columns[name]
            kept = value[-self._records % told["every"] :: told["every"]]
            data = np.ascontiguousarray(kept, told["dtype"]).tobytes()
            self._streams[name].write(data)
            self._sums[name].update(data)
            self._bytes += len(data)
        self._records += len(ids)
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._began >= SHARD_SECONDS:
            self._close_shard()

    def _begin(self, values: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any], every: Mapping[str, int]) -> None:
        self._about = dict(about)
        self._columns = {
            name: {
                "file": f"{place:02d}-{re.sub(r'[^A-Za-z0-9_]+', '-', name)}.bin",
                "dtype": value.dtype.newbyteorder("<").str,
                "shape": list(value.shape[1:]),
                "every": every.get(name, 1),
            }
            for place, (name, value) in enumerate(values.items())
        } | _OWN
        write_json(self._partial / "schema.json", {"columns": self._columns, "about": self._about})
        self._open_streams()

    def _close_shard(self) -> None:
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        if self._bytes:
            self._shards.append({"records": self._records, "sha256": {name: one.hexdigest() for name, one in self._sums.items()}})
            with (self._partial / "journal.jsonl").open("ab") as journal:
                journal.write(_line(self._shards[-1]))
                journal.flush()
                os.fsync(journal.fileno())
        self._sums = {name: hashlib.sha256() for name in self._columns}
        self._bytes, self._began = 0, time.monotonic()

    def seal(self) -> None:
        """Close the store and put it into its place.

        Raises:
            DataError: no record at all, an example that came twice, or that not every view has.
        """
        if not self.sealed:
            self._close_shard()
            self._index()
        for name in ("journal.jsonl", "schema.json", "keys.bin"):
            (self._partial / name).unlink(missing_ok=True)
        (self._partial / ".lock").unlink()
        if self._folder.exists():
            shutil.rmtree(self._folder)
        os.replace(self._partial, self._folder)
        (self._folder / "plan.json").unlink(missing_ok=True)  # of a part, whoever closes the whole may have taken it already

    def _index(self) -> None:
        keys = np.fromfile(self._partial / "keys.bin", "<i8").reshape(-1, 2) if self._records else self.keys
        if not len(keys):
            raise DataError("there is nothing to record: the loader gave no batch")
        found = self._by(self._partial, keys, self._plan)
        columns = {name: told for name, told in self._columns.items() if name not in _OWN}
        header = {
            **self._plan, "format": FORMAT, "columns": columns, "about": self._about,
            "shards": [{**one, "sha256": {name: one["sha256"][name] for name in columns}} for one in self._shards], **found,
        }  # fmt: skip
        write_json(self._partial / "store.json", {**header, "seal": digest(header)})

    def close(self) -> None:
        """Close what is open; a shard that is not whole is not counted."""
        for stream in self._streams.values():
            stream.close()


def _by_example(partial: Path, keys: npt.NDArray[np.int64], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The index of records whose keys are ids and views: every example in every view, once."""
    ids, views = keys.T
    count = len(np.unique(views))
    order = np.lexsort((ids, views))
    pairs = keys[order]
    if (again := (pairs[1:] == pairs[:-1]).all(1)).any():
        twice = pairs[1:][again][0]
        raise DataError(f"example {twice[0]} came twice in view {twice[1]}: an id must mean one example, and a pass over the data show each once")
    wanted: int = plan["recording"]["views"]
    if count != wanted or len(keys) % count or (pairs[:, 0].reshape(count, -1) != pairs[: len(keys) // count, 0]).any() or views.max() >= count:
        sizes = dict(zip(*(one.tolist() for one in np.unique(views, return_counts=True)), strict=True))
        told = ", ".join(f"view {view}: {size} examples" for view, size in sizes.items())
        raise DataError(f"{wanted} views of the same examples are to be recorded, and these came: {told}; give every example once in each view, from 0 on")
    examples = pairs[: len(keys) // count, 0]
    gaps = np.diff(examples, prepend=examples[:1])
    narrow = next(kind for kind in ("<u1", "<u2", "<u4", "<i8") if gaps.max() <= np.iinfo(kind).max)
    _write(partial / "ids.bin", gaps.astype(narrow))
    in_order = bool((order == np.arange(len(order))).all())
    if not in_order:
        _write(partial / "rows.bin", order.astype("<u4"))
    index = {
        "first": int(examples[0]), "dtype": narrow, "sha256": sha256(partial / "ids.bin"), "rows": None if in_order else sha256(partial / "rows.bin"),
    }  # fmt: skip
    return {"views": count, "examples": len(examples), "index": index}


def _write(path: Path, values: npt.NDArray[Any]) -> None:
    with path.open("wb") as stream:
        values.tofile(stream)
        stream.flush()
        os.fsync(stream.fileno())


def _line(shard: Mapping[str, Any]) -> bytes:
    return json.dumps(shard).encode() + b"\n"


def _journal(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; a kill may have left the last one torn."""
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        if not line.endswith(b"\n"):
            return
        yield json.loads(line)
