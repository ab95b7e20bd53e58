"""Files that are whole or absent: atomic writes, checksums, one lock per folder."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import ArtifactError, LockedError, StorageError

__all__ = ["atomic_folder", "atomic_write", "digest", "lock", "read_json", "sha256", "storage", "sweep", "write_json"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO}
_SCRATCH = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp", re.DOTALL)
"""What `tempfile` makes of our prefix and suffix: `.NAME.XXXXXXXX.tmp`."""


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a full disk or a closed folder into a `StorageError` that names `path`; what befalls files elsewhere is not touched, but for a full disk."""
    try:
        yield
    except StorageError:
        raise
    except SafetensorError as error:  # no OSError, whatever befell it
        if "No space left" not in str(error):
            raise
        raise StorageError(f"no space left while writing {path}: free some, or choose another folder with --out") from error
    except OSError as error:
        ours = _concerns(error, path)
        if error.errno in _FULL or "No space left" in str(error):
            raise StorageError(f"no space left while writing {path if ours else error.filename}: free some, or choose another folder with --out") from error
        if ours and error.errno in _CLOSED:
            raise StorageError(f"cannot write {path} ({error.strerror}): choose another folder with --out") from error
        raise


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about `path`, its scratch or a folder above it, as far as it says which file it is about."""
    if not isinstance(error.filename, (str, Path)):
        return True
    folder, named = path.absolute().parent, Path(error.filename).absolute()
    return named.is_relative_to(folder) or folder.is_relative_to(named)


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
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
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
    A failure leaves the old one. What a kill leaves behind, `sweep` removes.
    """
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = _scratch(path)
        try:
            yield scratch
            for file in sorted(scratch.rglob("*")):
                _sync(file)
            _sync(scratch)
            os.chmod(scratch, 0o755)
            if os.path.lexists(path):
                _swap(scratch, path)
            else:
                os.replace(scratch, path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _scratch(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))


def _swap(scratch: Path, path: Path) -> None:
    """Put `scratch` in the place of what stands at `path`, which comes back if that fails."""
    aside = _scratch(path)
    old = aside / "old"
    try:
        os.replace(path, old)
        os.replace(scratch, path)
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> list[Path]:
    """Remove the scratch files and folders that killed processes left anywhere under `folder`, and return their paths; the caller holds its lock.

    Links are not followed; nothing is touched but names that `atomic_write` and `atomic_folder` make.
    """
    swept: list[Path] = []
    with storage(folder):
        for where, folders, files in os.walk(folder):
            for name in [name for name in folders if _SCRATCH.fullmatch(name) and not Path(where, name).is_symlink()]:
                folders.remove(name)
                shutil.rmtree(Path(where, name))
                swept.append(Path(where, name))
            for name in filter(_SCRATCH.fullmatch, files):
                Path(where, name).unlink()
                swept.append(Path(where, name))
    return swept


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, whatever the order of its keys; `1` and `1.0` differ, as they do in JSON.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused, for JSON has none."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path.name} cannot be written: {error}") from None
    atomic_write(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is an `ArtifactError` that names it."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} is missing: is {path.parent} an artifact or a run of limbeck?") from None
    except (PermissionError, IsADirectoryError) as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): give it back its rights, or delete its stage and run the recipe again") from None
    except (ValueError, RecursionError) as error:
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
