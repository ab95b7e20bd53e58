"""A loader that is watched, and what may befall a training while it draws a batch: Ctrl-C, or a kill."""

import signal
from collections.abc import Callable, Iterator

from limbeck.core.task import Batch, Loader


class Killed(Exception):
    """Stands for a kill between two steps."""


class Watched(Loader):
    """A loader that calls `at(number, batch)` as each batch is drawn, counted from 1 over all epochs, and gives what that returns."""

    def __init__(self, loader: Loader, at: Callable[[int, Batch], Batch]) -> None:
        self.loader, self.at, self.drawn = loader, at, 0

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for batch in self.loader.batches(epoch, skip=skip):
            self.drawn += 1
            yield self.at(self.drawn, batch)


def press(step: int) -> Callable[[int, Batch], Batch]:
    """Press Ctrl-C while batch `step` is drawn; never, where it is 0."""

    def at(number: int, batch: Batch) -> Batch:
        if number == step:
            signal.raise_signal(signal.SIGINT)
        return batch

    return at


def kill(step: int) -> Callable[[int, Batch], Batch]:
    """Die while batch `step` is drawn; never, where it is 0."""

    def at(number: int, batch: Batch) -> Batch:
        if number == step:
            raise Killed
        return batch

    return at
