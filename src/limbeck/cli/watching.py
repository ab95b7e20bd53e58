"""Who listens to a run: bars for a terminal, lines for anything else, next to nothing when asked to be quiet."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from limbeck.core.events import Listener

from .lines import Lines, loud_only

__all__ = ["watcher"]


def watcher(*, stages: int, processes: int, quiet: bool) -> AbstractContextManager[Listener]:
    """Return the listener for a run of so many stages; with several processes it is one that can be pickled."""
    if quiet:
        return nullcontext(loud_only)
    if processes > 1 or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return nullcontext(Lines())
    from .bars import Bars

    return Bars(stages)
