"""Who listens to a run."""

import io
import pickle
import sys

import pytest

from limbeck.cli.bars import Bars
from limbeck.cli.lines import Lines, loud_only
from limbeck.cli.watching import watcher


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def chosen(*, processes: int = 1, quiet: bool = False) -> object:
    with watcher(stages=2, processes=processes, quiet=quiet) as listener:
        return listener


def test_a_terminal_has_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(chosen(), Bars)


@pytest.mark.parametrize("processes", [1, 2])
def test_anything_else_has_lines(monkeypatch, processes):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(chosen(processes=processes), Lines)


def test_several_processes_have_a_listener_that_goes_along(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(pickle.loads(pickle.dumps(chosen(processes=2))), Lines)


def test_a_dumb_terminal_and_none_at_all_have_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(chosen(), Lines)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(chosen(), Lines)


def test_quiet_hears_loud_notes_only():
    assert chosen(quiet=True) is loud_only
