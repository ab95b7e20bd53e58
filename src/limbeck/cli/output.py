"""What reaches the user: results on standard output, everything else on standard error."""

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["complain", "rendered", "say", "say_json", "stdout_kept"]


def say(text: str) -> None:
    """Print a result; where standard output cannot take it, the process ends with exit code 1: quietly for a closed pipe, otherwise with the reason."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            _drop(sys.stdout)
        if error.errno != errno.EPIPE:
            complain(f"cannot write to standard output ({error.strerror or error}): the result is not shown")
        sys.exit(1)


def say_json(value: Any) -> None:
    """Print the one object of `--json`."""
    say(json.dumps(value, indent=2, allow_nan=False))


def complain(text: str, *, prefix: str = "limbeck: ") -> None:
    """Print to standard error; nobody is told where that is closed or full, and no work is lost for it."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{prefix}{text}\n")
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere: Python would try it again when it exits, and complain."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def rendered(content: Any) -> str:
    """Draw something of rich's for standard output: in colour and to its width for a terminal, plain and wide for a file."""
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=terminal, width=None if terminal else 160, highlight=False, markup=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in drawn.getvalue().rstrip().splitlines())


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Send to standard error whatever is written to standard output meanwhile, by a library, a user's own part or another process: results come after."""
    if sys.stdout is None or sys.stderr is None:
        yield
        return
    ours = sys.stdout
    ours.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ours.flush()  # a library may have kept hold of it
        os.dup2(kept, 1)
        os.close(kept)
