"""Files that are whole or absent: atomic writes, checksums, one lock per folder."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ArtifactError, LockedError, StorageError

__all__ = ["atomic_folder", "atomic_write", "digest", "lock", "read_json", "sha256", "storage", "write_json"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EROFS, errno.EPERM}


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a full disk or a closed folder into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        if error.errno in _FULL or "No space left" in str(error):
            raise StorageError(f"no space left while writing {path}: free some, or choose another folder with --out") from error
        if error.errno in _CLOSED:
            raise StorageError(f"cannot write {path} ({error.strerror}): choose another folder with --out") from error
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, fsync, then rename: a reader finds the old file or the new one, never a part."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `path` when the block ends well, and vanishes when it does not.

    Whatever stood at `path` is replaced; it is moved aside first, so a kill at any moment leaves the old folder, the new one, or none: never a mixture.
    """
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield scratch
            for file in sorted(scratch.rglob("*")):
                _sync(file)
            _sync(scratch)
            os.chmod(scratch, 0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
                os.replace(path, old / "old")
                os.replace(scratch, path)
                shutil.rmtree(old)
            else:
                os.replace(scratch, path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, the same for equal values whatever the order of their keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused, for JSON has none."""
    atomic_write(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is an `ArtifactError` that names it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: is {path.parent} an artifact or a run of limbeck?") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}): it is damaged; delete its stage and run the recipe again") from None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder/.lock` for this process; the kernel lets go of it when the process dies, however it dies."""
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"another limbeck run is working in {folder}: wait for it, or choose another folder with --out") from None
        yield
