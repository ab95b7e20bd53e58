"""Progress in plain lines on standard error, for logs, pipes and several processes."""

import time

from limbeck.core.events import EpochDone, Event, Note, Progress, StageDone, StageStarted

from .figures import clock, of_epoch, of_stage
from .output import complain

__all__ = ["Lines", "loud_only", "note", "summary"]

PAUSE = 2.0
"""Seconds at least between two lines about epochs of one stage; its first and its last epoch always have theirs."""
LONG = 30.0
"""Seconds without a line after which a step is told of."""


def loud_only(event: Event) -> None:
    """Say nothing but what changes how figures may be read."""
    if isinstance(event, Note) and event.loud:
        complain(note(event), prefix="")


def note(event: Note) -> str:
    """A note in one line."""
    return f"{f'{event.stage}: ' if event.stage else ''}{'NOTE: ' if event.loud else ''}{event.text}"


def summary(event: StageDone) -> str:
    """A finished stage in one line."""
    figures = of_stage(event.metrics)
    return f"{event.stage}: {'reused' if event.reused else f'done in {clock(event.seconds)}'}{f'; {figures}' if figures else ''}"


class Lines:
    """Say what a run does, a line at a time; holds no open file, so that it can go along to other processes."""

    def __init__(self) -> None:
        self._said = 0.0
        self._first: tuple[float, int] | None = None
        self._left = ""

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._first = None
                self._tell(f"{event.stage}: {event.kind}{f', {event.steps:,} steps' if event.steps else ''}")
            case Progress():
                self._estimate(event)
                if time.monotonic() - self._said >= LONG:
                    self._tell(f"{event.stage}: step {event.step:,}/{event.steps:,}, {of_epoch(event.metrics)}{self._left}")
            case EpochDone():
                if event.epoch in (1, event.epochs) or time.monotonic() - self._said >= PAUSE:
                    self._tell(f"{event.stage}: epoch {event.epoch}/{event.epochs}, {of_epoch(event.metrics)}{self._left}")
            case Note():
                self._tell(note(event))
            case StageDone():
                self._tell(summary(event))

    def _estimate(self, event: Progress) -> None:
        """Keep how long the stage will still take, from the steps seen since its start here: a resumed one does not begin at zero."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._left = (now, event.step), ""
            return
        since, step = self._first
        self._left = f", {clock((now - since) / (event.step - step) * (event.steps - event.step))} left" if step < event.step < event.steps else ""

    def _tell(self, text: str) -> None:
        self._said = time.monotonic()
        complain(text, prefix="")
