"""What a black box has answered, by what it was asked: in memory, and in a folder where one is given.

FOLDER/source.json           which black box answered
FOLDER/<sha256>.safetensors  keys [M, 16] uint8 and rows [M, C] float32, whole or absent, named by the digest of its bytes
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from limbeck.core.errors import ArtifactError, LockedError, MismatchError
from limbeck.core.files import atomic_write, lock, read_json, storage, write_json

__all__ = ["Kept", "keys_of"]

_FORMAT = 1
_KEY = 16
_PAUSE = 2.0
"""Seconds after which answers that came in are written while others are waited for."""
_SHARDS = 256
"""Files above which a folder's answers are brought together when it is opened."""


def keys_of(inputs: np.ndarray) -> list[bytes]:
    """Return 16 bytes for each of `inputs [N, ...]` that no other input shares: the hash of its type, its shape and its values."""
    kind = f"{inputs.dtype.str}{inputs.shape[1:]}".encode()
    return [hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=_KEY, key=hashlib.sha256(kind).digest()).digest() for row in inputs]


class Kept:
    """Answers `[C]` by key; those of a folder are read when it is opened and when a key is missing, so that several processes share what they paid for.

    Raises:
        MismatchError: the folder holds the answers of another black box.
        ArtifactError: a damaged file.
        StorageError: a folder that cannot be written.
    """

    def __init__(self, folder: Path | None = None, source: Mapping[str, Any] | None = None) -> None:
        self._folder, self._rows = folder, dict[bytes, np.ndarray]()
        self._seen, self._new, self._written = set[str](), list[bytes](), time.monotonic()
        if folder is None:
            return
        told, file = {"format": _FORMAT, "source": dict(source or {})}, folder / "source.json"
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not file.is_file() and any(folder.glob("*.safetensors")):
                raise ArtifactError(f"{file} is missing beside answers: nobody knows whose they are; delete {folder}, or choose another")
        if not file.is_file():
            write_json(file, told)
        if (found := read_json(file)) != told:
            theirs = found.get("source") if isinstance(found, dict) else None
            raise MismatchError(f"{folder} keeps the answers of another black box ({_difference(theirs, told['source'])}): choose another folder, or delete it")
        self._bring_together()
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def lacks(self, keys: Sequence[bytes]) -> list[int]:
        """Return the first place of each key that has no answer."""
        missing = {key: place for place, key in reversed([*enumerate(keys)]) if key not in self._rows}
        if missing and self._folder is not None and self.refresh():
            missing = {key: place for key, place in missing.items() if key not in self._rows}
        return sorted(missing.values())

    def rows(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the answers to keys that have one, `[N, C]`.

        Raises:
            MismatchError: answers of several lengths, which one black box cannot have given.
        """
        found = [self._rows[key] for key in keys]
        if len({len(row) for row in found}) > 1:
            raise MismatchError(f"{self._folder or 'the memory'} holds answers of {' and '.join(sorted({str(len(row)) for row in found}))} classes: delete it")
        return np.stack(found)

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Remember answers `rows [N, C]`; they are on disk after `flush`, or sooner."""
        self._rows |= zip(keys, rows, strict=True)
        self._new += keys
        if time.monotonic() - self._written > _PAUSE:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._folder is not None and self._new:
            self._seen.add(_write(self._folder, {key: self._rows[key] for key in self._new}))
        self._new.clear()
        self._written = time.monotonic()

    def refresh(self) -> bool:
        """Read the files that came since the last time; say whether there were any."""
        assert self._folder is not None
        found = False
        with storage(self._folder):
            while fresh := {path.name for path in self._folder.glob("*.safetensors")} - self._seen:
                for name in fresh:
                    self._rows = _read(self._folder / name) | self._rows
                self._seen |= fresh
                found = True
        return found

    def _bring_together(self) -> None:
        """Make one file of many; another process that does so, or one that reads meanwhile, is not disturbed."""
        assert self._folder is not None
        names = sorted(self._folder.glob("*.safetensors"))
        if len(names) <= _SHARDS:
            return
        try:
            with lock(self._folder):
                whole: dict[bytes, np.ndarray] = {}
                for path in names:
                    whole |= _read(path)
                kept = _write(self._folder, whole)
                for path in names:
                    if path.name != kept:
                        path.unlink(missing_ok=True)
        except LockedError:
            return


def _write(folder: Path, answers: Mapping[bytes, np.ndarray]) -> str:
    keys = np.frombuffer(b"".join(answers), np.uint8).reshape(-1, _KEY)
    data = save({"keys": keys, "rows": np.stack([*answers.values()])})
    name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
    atomic_write(folder / name, data)
    return name


def _read(path: Path) -> dict[bytes, np.ndarray]:
    """The answers of a file; none where another process has just brought them together with others, which are read next."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        held = load(data)
        keys, rows = held["keys"], held["rows"]
    except (SafetensorError, KeyError):
        keys, rows = np.zeros((1, 0)), np.zeros((0, 0))
    if hashlib.sha256(data).hexdigest() != path.stem or len(keys) != len(rows):
        raise ArtifactError(f"{path} is damaged: delete it, and what it held is asked again")
    return {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}


def _difference(theirs: Any, ours: Mapping[str, Any]) -> str:
    """The first thing that two descriptions disagree on."""
    if not isinstance(theirs, dict):
        return "it does not say which"
    for name in sorted({*theirs, *ours}, key=lambda name: isinstance(ours.get(name), dict)):
        if theirs.get(name) != ours.get(name):
            both = isinstance(theirs.get(name), dict) and isinstance(ours.get(name), dict)
            inner = _difference(theirs[name], ours[name]) if both else f"{theirs.get(name)!r} there, {ours.get(name)!r} here"
            return f"{name}: {inner}"
    return "another format"
