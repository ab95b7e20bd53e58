"""A store of records by (view, example id), read: columns of fixed rows, raw and little-endian, mapped into memory as far as they are small.

store.json    what the records are, how many, of what they were made, and the SHA-256 of every shard of every column; sealed by a digest of itself
ids.bin       the examples' ids in ascending order, as differences
rows.bin      the row of each (view, example), where rows do not stand in that order
NN-NAME.bin   a column: one value of one shape for each record, or for each `every`-th record

`_store_writer.py` writes it; `_store_tokens.py` finds records by token in place of example, in folders of the same columns. Nothing here needs torch. Shapes:
V views, M examples, R = V M records, N rows that are read.
"""

import hashlib
import os
import weakref
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import ArtifactError, MismatchError
from limbeck.core.files import digest, read_json

__all__ = ["FORMAT", "Columns", "Store", "check_files", "damaged", "read_header", "record_count", "row_bytes", "shard_sums"]

FORMAT = 1
RESIDENT = 96 << 20
"""Bytes of columns that a reader maps at the most: once touched they are resident, in pages shared with the system's cache and with other readers."""
_CHUNK = 4 << 20
_VERIFIED: dict[Path, tuple[Any, ...]] = {}
"""The stores of which this process has compared every byte, with what their files looked like then."""


def record_count(column: Mapping[str, Any], records: int) -> int:
    """Return how many values a column has for so many records."""
    return -(-records // column["every"])


def row_bytes(column: Mapping[str, Any]) -> int:
    """Return the bytes of one value."""
    return np.dtype(column["dtype"]).itemsize * int(np.prod(column["shape"], dtype=np.int64))


def shard_sums(path: Path, sizes: list[int]) -> Iterator[str]:
    """Give the SHA-256 of consecutive pieces of a file, read through the system's cache and not kept."""
    with path.open("rb") as stream:
        for size in sizes:
            whole = hashlib.sha256()
            while size > 0 and (piece := stream.read(min(size, _CHUNK))):
                whole.update(piece)
                size -= len(piece)
            yield whole.hexdigest()


def read_header(folder: Path, *formats: int | str) -> dict[str, Any]:
    """Return what `store.json` says, of one of these formats and as it was sealed.

    Raises:
        ArtifactError: no store, one that is not finished, of another format, or damaged.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if not (folder / "store.json").is_file():
        way = "its writing did not come to an end: record it again, which goes on from there" if partial.is_dir() else "record one first"
        raise ArtifactError(f"{folder} is no store of recorded knowledge: {way}")
    header = read_json(folder / "store.json")
    if not isinstance(header, dict) or header.get("format") not in formats:
        told = header.get("format") if isinstance(header, dict) else None
        raise ArtifactError(f"{folder} is a store of format {told}, and this limbeck reads {formats[0]}: delete it, and it is recorded again")
    if header.get("seal") != digest({key: value for key, value in header.items() if key != "seal"}):
        raise ArtifactError(f"{folder / 'store.json'} does not match its own seal: it is damaged; delete {folder}, and it is recorded again")
    return header


def check_files(folder: Path, seal: str, files: Mapping[str, list[tuple[int, str]]], *, verify: bool) -> None:
    """Compare the size of every file with what was told, `files`: name -> size and SHA-256 of each of its pieces; with `verify`, every byte, once a process.

    Raises:
        ArtifactError: one that is missing, cut, or changed.
    """
    for name, sizes in files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != sum(size for size, _ in sizes):
            raise damaged(folder, name, "is missing" if found is None else f"has {found} bytes, not {sum(size for size, _ in sizes)}")
    if verify:
        _verify(folder, seal, files)


class Columns:
    """The columns of a folder; `open` makes one. A copy, or what another process is sent, opens the folder again."""

    FORMATS: ClassVar[tuple[int | str, ...]] = (FORMAT,)

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder, self.header = folder, header
        self.records: int = header["shards"][-1]["records"]
        self._maps: dict[str, npt.NDArray[Any]] = {}
        self._handles: dict[str, int] = {}
        self._mapped = 0

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Self:
        """Open a folder: its header and the size of every file are checked; with `verify`, every byte, once a process.

        Raises:
            ArtifactError: no store, one that is not finished, of another format, or damaged.
        """
        header = read_header(folder, *cls.FORMATS)
        check_files(folder, header["seal"], _files(header), verify=verify)
        return cls(folder, header)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), self.folder)

    def read(self, column: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the values of a column at `rows`, copied: `[N, ...]`; rows count the column's own values."""
        told = self.header["columns"][column]
        if column not in self._maps and column not in self._handles:
            self._open(column, told)
        if column in self._maps:
            return self._maps[column][rows]
        size = row_bytes(told)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # of rows that lie one behind the other
        spans = zip((rows[starts] * size).tolist(), (np.diff(starts, append=len(rows)) * size).tolist(), strict=True)
        data = bytearray().join([os.pread(self._handles[column], span, place) for place, span in spans])
        if len(data) != len(rows) * size:
            raise damaged(self.folder, told["file"], "is shorter than it was")
        return np.frombuffer(data, told["dtype"]).reshape(len(rows), *told["shape"])

    def _open(self, column: str, told: Mapping[str, Any]) -> None:
        """Map a column as long as all that is mapped stays within `RESIDENT`; what is larger is read row by row, and never resident."""
        path, count = self.folder / told["file"], record_count(told, self.records)
        self._mapped += count * row_bytes(told)
        if self._mapped <= RESIDENT:
            self._maps[column] = np.memmap(path, told["dtype"], "r", shape=(count, *told["shape"]))
            return
        self._mapped -= count * row_bytes(told)
        self._handles[column] = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handles[column])


class Store(Columns):
    """Records by (view, example id)."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        super().__init__(folder, header)
        self.views: int = header["views"]
        self.examples: int = header["examples"]
        index = header["index"]
        self._ids = np.cumsum(np.fromfile(folder / "ids.bin", index["dtype"]), dtype=np.int64) + index["first"]
        self._row = np.memmap(folder / "rows.bin", "<u4", "r", shape=(self.views * self.examples,)) if index["rows"] else None

    def rows(self, ids: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows `[N]` of the records of `ids [N]` in `views [N]`.

        Raises:
            MismatchError: a view or an example that was not recorded.
        """
        if len(views) and (low := int(views.min()), high := int(views.max())) and not 0 <= low <= high < self.views:
            raise MismatchError(f"view {low if low < 0 else high} was not recorded: {self.folder} holds {self.views} views, from 0 to {self.views - 1}")
        place = np.minimum(np.searchsorted(self._ids, ids), self.examples - 1)
        if (strange := self._ids[place] != ids).any():
            raise MismatchError(
                f"example {int(ids[strange][0])} was not recorded ({int(strange.sum())} of {len(ids)} in this batch): {self.folder} holds {self.examples} "
                f"examples of the training split, ids {self._ids[0]} to {self._ids[-1]}; other data have other answers: record those"
            )
        rows = views * self.examples + place
        return rows if self._row is None else self._row[rows].astype(np.int64)


def _reopened(kind: type[Columns], folder: Path) -> Columns:
    return kind.open(folder, verify=False)


def _files(header: Mapping[str, Any]) -> dict[str, list[tuple[int, str]]]:
    """File -> the size and the SHA-256 of each of its pieces."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name, column in header["columns"].items():
        ends = [0, *(record_count(column, shard["records"]) * row_bytes(column) for shard in header["shards"])]
        found[column["file"]] = [(end - start, shard["sha256"][name]) for (start, end), shard in zip(pairwise(ends), header["shards"], strict=True)]
    if (index := header["index"]) is None:  # whoever holds the folder has one
        return found
    found["ids.bin"] = [(header["examples"] * np.dtype(index["dtype"]).itemsize, index["sha256"])]
    if index["rows"]:
        found["rows.bin"] = [(header["views"] * header["examples"] * 4, index["rows"])]
    return found


def _verify(folder: Path, seal: str, files: Mapping[str, list[tuple[int, str]]]) -> None:
    looks = (seal, *((folder / name).stat().st_mtime_ns for name in files))
    if _VERIFIED.get(folder.resolve()) == looks:
        return
    for name, pieces in files.items():
        for place, ((_, told), found) in enumerate(zip(pieces, shard_sums(folder / name, [size for size, _ in pieces]), strict=True)):
            if told != found:
                raise damaged(folder, name, f"does not match its checksum in shard {place}")
    _VERIFIED[folder.resolve()] = looks


def damaged(folder: Path, name: str, how: str) -> ArtifactError:
    return ArtifactError(f"{folder / name} {how}: the store is damaged; delete {folder}, and it is recorded again")
