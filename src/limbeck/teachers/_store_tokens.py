"""A store of records by token, (view, document, place), in parts that several processes write at once: found by runs of places that follow each other.

store.json        what the records are, of what they were made, the parts with their seals; sealed by a digest of itself
part-I-of-W/      columns of what process I of W wrote, as `_store.py` has them
documents.bin     the documents' numbers in ascending order, as differences
starts.bin        the first (view, document, place) of each run, in ascending order; rows.bin where it begins, counts.bin how long it is
heads.safetensors the heads that states are kept of, where they are

Shapes: n tokens, R runs. A token's row counts through all parts, in their order.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import ArtifactError, DataError, LockedError, MismatchError
from limbeck.core.files import digest, lock, sha256, storage, write_json

from ._store import Columns, check_files, read_header

__all__ = ["HEADS", "TOKENS", "Tokens", "packed_keys", "part_name", "runs_of", "sealed"]

TOKENS = "tokens 1"
"""The format of a store that is found by token; its parts have the format of all columns."""
HEADS = "heads.safetensors"
Ints = npt.NDArray[np.int64]
_PLACES = 32
"""Bits that a place in its document takes."""


def part_name(rank: int, world: int) -> str:
    """Return the folder of what process `rank` of `world` writes."""
    return f"part-{rank}-of-{world}"


def packed_keys(views: Ints, documents: Ints, places: Ints) -> Ints:
    """Return `[n, 2]`, documents and (view, place) as one number each."""
    return np.stack([documents, views << _PLACES | places], 1)


def runs_of(partial: Path, keys: Ints, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Write down which places of which documents the records of a part are, `keys [n, 2]` as `packed_keys` has them: a `store_writer.Index`."""
    follows = (keys[1:, 0] == keys[:-1, 0]) & (keys[1:, 1] == keys[:-1, 1] + 1)
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    runs = np.stack([keys[first, 0], keys[first, 1], first, np.diff(first, append=len(keys))], 1)
    _write(partial / "runs.bin", runs)
    return {"index": None, "runs": sha256(partial / "runs.bin"), "records": len(keys)}


def sealed(folder: Path, plan: Mapping[str, Any], world: int) -> bool:
    """Close the store `folder` if each of `world` processes has written its part of `folder.partial`; whether it stands then.

    Raises:
        DataError: a token that came twice, or a view without one.
        ArtifactError: parts that were not made alike.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    names = [part_name(rank, world) for rank in range(world)]
    while not folder.exists():
        if not all((partial / name / "store.json").is_file() for name in names):
            return folder.exists()
        try:
            with storage(folder), lock(partial):
                if all((partial / name / "store.json").is_file() for name in names):
                    _seal(folder, partial, plan, names)
        except LockedError:  # by another process that found all parts there
            time.sleep(0.02)
        except FileNotFoundError:  # it was done in the meantime
            if partial.is_dir():
                raise
    if partial.is_dir() and not any(path.name != ".lock" for path in partial.iterdir()):
        shutil.rmtree(partial, ignore_errors=True)  # made again by a lock that came late
    return True


def _seal(folder: Path, partial: Path, plan: Mapping[str, Any], names: Sequence[str]) -> None:
    if not (partial / "store.json").is_file():
        write_json(partial / "store.json", _manifest(partial, plan, names))
    for path in partial.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
        elif path.name in ("measured.json", ".lock"):
            path.unlink()
    for name in names:
        for spare in ("runs.bin", "plan.json", HEADS):
            (partial / name / spare).unlink(missing_ok=True)
    os.replace(partial, folder)


def _manifest(partial: Path, plan: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    parts = [read_header(partial / name, 1) for name in names]
    alike = {key: parts[0][key] for key in ("made_of", "recording", "chosen", "measured", "about", "columns")} | dict(plan)
    for name, part in zip(names, parts, strict=True):
        if any(part[key] != value for key, value in alike.items()):
            raise ArtifactError(f"{partial / name} was not made as {names[0]} was: delete {partial}, and it is recorded again")
    every, base = list[Ints](), 0
    for name, part in zip(names, parts, strict=True):
        if sha256(partial / name / "runs.bin") != part["runs"]:
            raise ArtifactError(f"{partial / name / 'runs.bin'} does not match its checksum: it is damaged; delete {partial}, and it is recorded again")
        runs = np.fromfile(partial / name / "runs.bin", "<i8").reshape(-1, 4)
        runs[:, 2] += base
        base += part["records"]
        every.append(runs)
    documents, files = _index(np.concatenate(every), base, plan["recording"]["views"], partial)
    if (heads := parts[0]["about"]["heads"]) is not None:
        shutil.copyfile(partial / names[0] / HEADS, partial / HEADS)
        files[HEADS] = [(partial / HEADS).stat().st_size, heads]
    header = {
        **alike, "format": TOKENS, "records": base, "documents": documents, "files": files,
        "parts": {name: part["seal"] for name, part in zip(names, parts, strict=True)},
    }  # fmt: skip
    return {**header, "seal": digest(header)}


def _index(runs: Ints, count: int, views: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the runs `[R, 4]` (document, view and place, row, length) in order; what a reader must know of the documents, and the files."""
    documents, number = np.unique(runs[:, 0], return_inverse=True)
    view, place = runs[:, 1] >> _PLACES, runs[:, 1] & ((1 << _PLACES) - 1)
    if (seen := np.unique(view)).tolist() != list(range(views)):
        raise DataError(f"{views} views are to be recorded, and these came: {', '.join(map(str, seen.tolist()))}; give every token in each view, from 0 on")
    start = (view * len(documents) + number) << _PLACES | place
    order = np.argsort(start, kind="stable")
    start, row, length = start[order], runs[order, 2], runs[order, 3]
    if (again := start[1:] < start[:-1] + length[:-1]).any():
        at = order[1:][again][0]
        raise DataError(f"place {place[at]} of document {runs[at, 0]} came twice in view {view[at]}: a token is recorded once in each view")
    gaps = np.diff(documents, prepend=documents[:1])
    made = {"documents.bin": _narrow(gaps), "starts.bin": start.astype("<i8"), "rows.bin": _narrow(row), "counts.bin": _narrow(length)}
    files: dict[str, Any] = {}
    for name, values in made.items():
        _write(folder / name, values)
        files[name] = [values.nbytes, sha256(folder / name), values.dtype.str]
    return {"count": len(documents), "first": int(documents[0]), "tokens": count}, files


def _narrow(values: Ints) -> npt.NDArray[Any]:
    return values.astype(next(kind for kind in ("<u1", "<u2", "<u4", "<i8") if values.max() <= np.iinfo(kind).max))


def _write(path: Path, values: npt.NDArray[Any]) -> None:
    with path.open("wb") as stream:
        stream.write(np.ascontiguousarray(values).tobytes())
        stream.flush()
        os.fsync(stream.fileno())


class Tokens:
    """The records of a folder; `open` makes one. A copy, or what another process is sent, opens the folder again."""

    def __init__(self, folder: Path, header: Mapping[str, Any], parts: Sequence[Columns]) -> None:
        self.folder, self.header, self._parts = folder, header, parts
        self.views: int = header["recording"]["views"]
        self._bounds = np.cumsum([0, *(part.records for part in parts)])

        def values(name: str) -> npt.NDArray[Any]:
            return np.memmap(folder / name, header["files"][name][2], "r")

        self._documents = np.cumsum(np.fromfile(folder / "documents.bin", header["files"]["documents.bin"][2]), dtype=np.int64) + header["documents"]["first"]
        self._starts, self._rows, self._counts = values("starts.bin"), values("rows.bin"), values("counts.bin")

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Tokens":
        """Open a folder: headers and the size of every file are checked; with `verify`, every byte, once a process.

        Raises:
            ArtifactError: no store, one that is not finished, of another format, or damaged.
        """
        header = read_header(folder, TOKENS)
        check_files(folder, header["seal"], {name: [(told[0], told[1])] for name, told in header["files"].items()}, verify=verify)
        parts = [Columns.open(folder / name, verify=verify) for name in header["parts"]]
        for part, seal in zip(parts, header["parts"].values(), strict=True):
            if part.header["seal"] != seal:
                raise ArtifactError(f"{part.folder} is no part of {folder}: the store is damaged; delete {folder}, and it is recorded again")
        return cls(folder, header, parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder,)

    def rows(self, views: Ints, documents: Ints, places: Ints) -> Ints:
        """Return the rows `[n]` of the records of tokens.

        Raises:
            MismatchError: a view, a document or a place that was not recorded.
        """
        if len(views) and not 0 <= (low := int(views.min())) <= (high := int(views.max())) < self.views:
            raise MismatchError(f"view {low if low < 0 else high} was not recorded: {self.folder} holds {self.views} views, from 0 to {self.views - 1}")
        number = np.minimum(np.searchsorted(self._documents, documents), len(self._documents) - 1)
        if (strange := self._documents[number] != documents).any():
            raise MismatchError(
                f"document {int(documents[strange][0])} was not recorded ({int(strange.sum())} of {len(documents)} tokens in this batch): {self.folder} holds "
                f"{len(self._documents)} documents, {self._documents[0]} to {self._documents[-1]}; another corpus or split has other answers: record those"
            )
        wanted = (views * len(self._documents) + number) << _PLACES | places
        run = np.maximum(np.searchsorted(self._starts, wanted, side="right") - 1, 0)
        beyond = wanted - self._starts[run]
        if (strange := (beyond < 0) | (beyond >= self._counts[run])).any():
            raise MismatchError(
                f"place {int(places[strange][0])} of document {int(documents[strange][0])} was not recorded ({int(strange.sum())} of {len(documents)} tokens "
                f"in this batch): {self.folder} holds the tokens that counted when it was recorded; other labels, or another tokenizer: record it for these"
            )
        return self._rows[run].astype(np.int64) + beyond

    def read(self, column: str, rows: Ints) -> npt.NDArray[Any]:
        """Return the values of a column that has one for each token, at `rows`, copied: `[n, ...]`."""
        if len(self._parts) == 1:
            return self._parts[0].read(column, rows)
        told = self.header["columns"][column]
        found = np.empty((len(rows), *told["shape"]), told["dtype"])
        part = np.searchsorted(self._bounds, rows, side="right") - 1
        for one in np.unique(part):
            found[part == one] = self._parts[one].read(column, rows[part == one] - self._bounds[one])
        return found

    def witnesses(self, rows: Ints) -> tuple[Ints, npt.NDArray[Any]]:
        """Return which of `rows` have a witness of what the teacher saw, and these witnesses."""
        every = self.header["columns"]["witness"]["every"]
        part = np.searchsorted(self._bounds, rows, side="right") - 1
        own = rows - self._bounds[part]
        chosen = np.flatnonzero(own % every == 0)
        found = np.empty(len(chosen), "<u4")
        for one in np.unique(part[chosen]):
            mine = part[chosen] == one
            found[mine] = self._parts[one].read("witness", own[chosen][mine] // every)
        return chosen, found


def _reopened(folder: Path) -> Tokens:
    return Tokens.open(folder, verify=False)
