"""Progress in bars on standard error, for a terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from limbeck.core.events import EpochDone, Event, Note, Progress, StageDone, StageStarted

from .figures import of_epoch
from .lines import note, summary

__all__ = ["Bars"]


class Bars:
    """One bar for the stage that runs, with steps, the time that is left and the metrics that matter; a line for every stage that is done."""

    def __init__(self, stages: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._stages = stages
        self._done = 0
        self._running: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._clear()
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._clear()
                place = f" {self._done + 1}/{self._stages}" if self._done < self._stages else ""
                self._running = self._bars.add_task(f"{event.stage} ({event.kind}{place})", total=event.steps or None, figures="")
            case Progress() if self._running is not None:
                self._bars.update(self._running, completed=event.step, total=event.steps, figures=of_epoch(event.metrics))
            case EpochDone() if self._running is not None:
                self._bars.update(self._running, figures=of_epoch(event.metrics))
            case Note():
                self._console.print(Text(note(event), style="bold yellow" if event.loud else "dim"))
            case StageDone():
                self._clear()
                self._done += 1
                self._console.print(Text(summary(event), style="dim" if event.reused else ""))

    def _clear(self) -> None:
        if self._running is not None:
            self._bars.remove_task(self._running)
            self._running = None
