"""What limbeck raises, drawn as one tree.

LimbeckError                   everything below; a message names both sides and the way out
├── RecipeError   (ValueError)   an option, a part or a stage that cannot be meant
├── DataError     (ValueError)   data that are missing, truncated, corrupt, empty or out of range
├── MismatchError (ValueError)   two sides that do not fit: teacher and student, objective and teacher, batch and model
├── ArtifactError (ValueError)   an artifact or checkpoint whose bytes do not match its manifest
├── StorageError  (OSError)      a full disk, a folder that cannot be written
├── LockedError                  a second run in the same folder
├── MissingDependency (ImportError)  an optional library is not installed; the message is the pip line
├── TrainingError                training went wrong after step one: a loss that is not finite
├── ParityError                  an exported file does not compute what the model computes
└── Interrupted                  Ctrl-C; what was reached is saved

`exit_code` is what the command line returns: 2 before step one, 1 after it, 130 when interrupted.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "DataError",
    "Interrupted",
    "LimbeckError",
    "LockedError",
    "MismatchError",
    "MissingDependency",
    "ParityError",
    "RecipeError",
    "StorageError",
    "TrainingError",
    "did_you_mean",
]


class LimbeckError(Exception):
    """Whatever limbeck raises on purpose."""

    exit_code = 2


class RecipeError(LimbeckError, ValueError):
    """An option, a part or a stage that cannot be meant."""


class DataError(LimbeckError, ValueError):
    """Data that are missing, truncated, corrupt, empty or out of range."""


class MismatchError(LimbeckError, ValueError):
    """Two sides that do not fit."""


class ArtifactError(LimbeckError, ValueError):
    """An artifact or checkpoint whose bytes do not match its manifest."""


class StorageError(LimbeckError, OSError):
    """A full disk, or a folder that cannot be written."""


class LockedError(LimbeckError):
    """A second run in the same folder at the same time."""


class MissingDependency(LimbeckError, ImportError):
    """An optional library that is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {library}: pip install "limbeck[{extra}]"')
        self._told = (library, extra, purpose)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Survive the way back from a worker process."""
        return type(self), self._told


class TrainingError(LimbeckError):
    """Training went wrong after step one."""

    exit_code = 1


class ParityError(LimbeckError):
    """An exported file does not compute what the model computes."""

    exit_code = 1


class Interrupted(LimbeckError):
    """Ctrl-C: what was reached is saved, and the message says how to resume."""

    exit_code = 130


_LISTED = 30


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest choice, or the choices (30 of them at most) when none is near.

    >>> did_you_mean("temprature", ["temperature", "weight"])
    "; did you mean 'temperature'?"
    >>> did_you_mean("qqq", ["b", "a"])
    '; choices are a, b'
    """
    known = sorted(choices)
    folded = {choice.casefold(): choice for choice in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {folded[near[0]]!r}?"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"; choices are {', '.join(known[:_LISTED])}{more}" if known else ""
