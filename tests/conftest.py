"""What every test needs: one thread a process, and no test of real data where there are none."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; `make test` runs a process for each core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `data` unless LIMBECK_DATA names the folder of the real data."""
    if "LIMBECK_DATA" in os.environ:
        return
    for item in items:
        if "data" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="set LIMBECK_DATA to the folder of the real data"))


@pytest.fixture(autouse=True)
def a_checkpoint_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every epoch, however short."""
    monkeypatch.setattr("limbeck.engine.loop.SAVE_EVERY", 0.0)
