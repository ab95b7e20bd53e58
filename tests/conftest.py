"""What every test needs: one thread a process, and no test of real data where there are none."""

import os
import pickle
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.served import Server

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


@pytest.fixture
def planetoid(tmp_path: Path) -> Path:
    """Write ROOT/graph-planetoid/ind.cora.*, a graph of 40 nodes: 4 for training, 20 others, 14 for testing, and 2 (26 and 31) that nothing is known of.

    Two classes, told by the first two of 6 features; node 5 has no features; `graph` names some edges once, some twice and one node as its own neighbour.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    made = np.random.default_rng(0)
    classes = np.arange(40) % 2
    features = (made.random((40, 6)) < 0.3).astype(np.float32)
    features[np.arange(40), classes] = 3.0
    features[5] = 0.0
    test = made.permutation([node for node in range(24, 40) if node not in (26, 31)])
    graph = defaultdict(list)
    for node in range(40):
        if node not in (26, 31):
            graph[node] = [int(other) for other in made.choice([one for one in range(40) if one % 2 == node % 2 and one not in (26, 31)], 2)]
    graph[0] += [2, 2, 0]
    one_hot = np.eye(2, dtype=np.int32)[classes]
    rows = {"x": np.arange(4), "tx": test, "allx": np.arange(24)}
    folder = tmp_path / "graph-planetoid"
    folder.mkdir()
    for name, chosen in rows.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(csr_matrix(features[chosen]), protocol=2))
        (folder / f"ind.cora.{name.replace('x', 'y')}").write_bytes(pickle.dumps(one_hot[chosen], protocol=2))
    (folder / "ind.cora.graph").write_bytes(pickle.dumps(graph, protocol=2))
    (folder / "ind.cora.test.index").write_text("".join(f"{node}\n" for node in test))
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that listens as long as the test runs."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()
