"""What a run's folder keeps beside its results: shelved stages, unfinished work, files made for measuring."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limbeck.core.errors import ArtifactError
from limbeck.core.files import lock, storage

__all__ = ["Leftover", "clean", "leftovers", "runs_under"]


@dataclass(frozen=True)
class Leftover:
    """Something that can go without a result being lost, and what it is good for."""

    path: Path
    what: str
    bytes: int


def runs_under(folder: Path) -> list[Path]:
    """Return the runs' folders in a folder."""
    return sorted(path.parent for path in folder.glob("*/recipe.yaml"))


def leftovers(run: Path) -> list[Leftover]:
    """List what lies in a run's `cache`, `knowledge` and `work`, with its size in bytes.

    Raises:
        ArtifactError: the folder is no run.
    """
    if not (run / "recipe.yaml").is_file():
        raise ArtifactError(f"{run} is no run of limbeck (it has no recipe.yaml): name a run's folder, such as runs/digits")
    return list(_found(run))


def clean(run: Path) -> list[Leftover]:
    """Remove what `leftovers` lists, under the run's lock, and return it.

    Raises:
        ArtifactError: the folder is no run.
        LockedError: limbeck is working in it.
        StorageError: the folder cannot be written.
    """
    leftovers(run)
    with lock(run):
        found = leftovers(run)
        for one in found:
            with storage(one.path):
                if one.path.is_dir() and not one.path.is_symlink():
                    shutil.rmtree(one.path)
                else:
                    one.path.unlink()
    return found


def _found(run: Path) -> Iterator[Leftover]:
    for path in _inside(run / "cache"):
        if path.name == "measured":
            yield Leftover(path, "files made for measuring; made again when needed", _bytes(path))
        else:
            yield Leftover(path, "shelved stage: reused when its options come back, or continued with more epochs", _bytes(path))
    for path in _inside(run / "knowledge"):
        yield Leftover(path, "what a teacher said, recorded: recorded again when a new student is to learn from it", _bytes(path))
    for path in _inside(run / "work"):
        yield Leftover(path, "unfinished stage: the next run goes on from it", _bytes(path))


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _bytes(path: Path) -> int:
    """The size of a file, or of all that lies in a folder; what a running process takes away meanwhile counts nothing."""
    if path.is_symlink() or not path.is_dir():
        return _size(path)
    return sum(_size(Path(where, name)) for where, _, names in os.walk(path) for name in names)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
