import os
import sys
from typing import cast

import numpy as np
import pytest

from limbeck.measure import _worker
from limbeck.measure._worker import choose_cpus, orders


def test_threads_get_a_core_each_before_they_share_one():
    hyperthreads = {cpu: str(cpu % 4) for cpu in range(8)}  # 0 and 4 are one core
    for threads in range(1, 5):
        assert len({hyperthreads[cpu] for cpu in choose_cpus(hyperthreads, threads)}) == threads
    assert choose_cpus(hyperthreads, 8) == list(range(8))
    assert choose_cpus({5: "a", 9: "b"}, 1) == [9]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can pin")
def test_pinning_pins_and_threads_inherit_it():
    before = os.sched_getaffinity(0)
    try:
        assert _worker._pin(1) == sorted(os.sched_getaffinity(0))
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_every_order_is_as_likely_as_another():
    seen = orders(3, 6000, seed=1)
    assert all(sorted(turn) == [0, 1, 2] for turn in seen)
    counts = [sum(turn == [a, b, c] for turn in seen) for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
    assert min(counts) > 850  # 1000 expected, a standard deviation of 29
    assert max(counts) < 1150
    assert orders(3, 50, seed=1) == seen[:50]
    assert orders(3, 50, seed=2) != seen[:50]


class Falling:
    """A model whose runs get faster from window to window until `settled`, then stay."""

    def __init__(self, settled: int):
        self.windows, self.settled = 0, settled
        self.single, self.batched = [1], [32]

    def run(self, feeds, times):
        if feeds == self.batched:
            return np.array([7e6])
        self.windows += 1
        return np.full(times, 1e6 * (1 + max(self.settled - self.windows, 0)))


def test_warming_up_ends_when_it_is_steady_and_not_before():
    model = Falling(settled=6)
    assert _worker.warm_up(cast(_worker.Model, model), 60.0) == (1e6, 7e6, True)
    assert model.windows == 8


def test_warming_up_gives_up_honestly():
    model = Falling(settled=10)
    assert _worker.warm_up(cast(_worker.Model, model), 0.0)[2] is False
    assert model.windows == 3


def test_inputs_are_of_an_ordinary_range():
    generator = np.random.default_rng(0)
    real = _worker._inputs(generator, (100, 100), "float16")
    assert real.dtype == np.float16
    assert abs(float(real.mean())) < 0.05
    assert 0.9 < float(real.astype(float).std()) < 1.1
    pixels = _worker._inputs(generator, (1000,), "uint8")
    assert pixels.dtype == np.uint8
    assert pixels.max() > 200
    assert set(np.unique(_worker._inputs(generator, (100,), "int64"))) == {0, 1}
    assert _worker._inputs(generator, (4,), "bool").dtype == np.bool_


def test_runs_fill_their_slot_but_never_fall_short():
    assert _worker._runs(10e6, 1e6, 8) == 10
    assert _worker._runs(10e6, 100e6, 8) == 8
    assert _worker._runs(10e6, 1.0, 8) == 2000
