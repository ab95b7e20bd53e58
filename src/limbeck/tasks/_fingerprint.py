"""What a task's files are, by their bytes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from limbeck.core.errors import DataError
from limbeck.core.files import sha256

__all__ = ["file_hash", "files_hash"]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a data file's bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def files_hash(files: Mapping[str, Path]) -> str:
    """Return one digest of several files, by names that do not depend on where they lie."""
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        found.update(f"{name}\0{file_hash(path)}\0".encode())
    return found.hexdigest()
