"""From the shell's arguments to an exit code: 0 for success, 2 before step one, 1 after it, 130 on Ctrl-C; no traceback for a user's mistake."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from limbeck.core.errors import LimbeckError

from .commands import app
from .output import complain, say_json

__all__ = ["invoke", "main"]


def main() -> None:
    """Run `limbeck` with the shell's arguments, and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name shows its code
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # for `python:` parts; last, so that nothing lying here stands in for a library
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; what goes wrong is one line on standard error, and with `--json` the one object on standard output too."""
    try:
        answer = app(list(arguments), prog_name="limbeck", standalone_mode=False)
    except LimbeckError as error:
        return _fail(arguments, type(error).__name__, str(error), error.exit_code)
    except typer.TyperException as error:
        if not error.format_message():  # `limbeck` alone: typer has printed its help
            return error.exit_code
        return _fail(arguments, "UsageError", f"{error.format_message()} (limbeck --help)", error.exit_code)
    except KeyboardInterrupt:
        return 130
    return answer if isinstance(answer, int) else 0


def _fail(arguments: Sequence[str], kind: str, message: str, code: int) -> int:
    message = " ".join(message.splitlines())
    complain(message)
    if "--json" in arguments:
        say_json({"error": {"type": kind, "message": message}})
    return code
