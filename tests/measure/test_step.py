import sys
import time

import pytest
import torch

from limbeck.measure.step import step


def test_the_most_that_is_held_at_once_is_counted_and_what_is_freed_is_not() -> None:
    kept: list[torch.Tensor] = []

    def run() -> None:
        for _ in range(5):  # each is freed before the next but one is made
            passing = torch.empty(1_000_000)
            passing.zero_()
            del passing
        kept.append(torch.zeros(500_000))

    found = step(run, kept.clear, torch.device("cpu"))
    assert 4_000_000 <= found.peak_bytes < 4_500_000
    assert not kept


def test_nothing_is_said_on_the_error_stream_but_by_the_step_itself(capfd: pytest.CaptureFixture[str]) -> None:
    step(lambda: print("mine", file=sys.stderr), lambda: None, torch.device("cpu"))
    assert capfd.readouterr().err == "mine\n" * 4


def test_the_warming_pass_is_not_timed() -> None:
    calls: list[float] = []

    def run() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) == 1 else 0.01)

    assert 0.01 <= step(run, lambda: None, torch.device("cpu")).seconds < 0.1
    assert len(calls) == 4


def test_gradients_and_what_they_need_are_in_the_peak() -> None:
    layer = torch.nn.Linear(300, 300)
    x = torch.randn(1000, 300)

    def run() -> None:
        layer(layer(x)).sum().backward()

    found = step(run, layer.zero_grad, torch.device("cpu"))
    assert found.peak_bytes >= 2 * 4 * 300_000  # two activations are alive when the second pass begins
