"""Citation graphs from their pickles: where each node's row goes, the nodes that nothing is known of, edges, and what is refused."""

import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from limbeck.core.errors import DataError
from limbeck.tasks._planetoid import Citations, planetoid_files, read_planetoid


def read(root: Path, name: str = "cora") -> Citations:
    return read_planetoid(planetoid_files(root / "graph-planetoid", name))


def part(root: Path, name: str) -> Path:
    return root / "graph-planetoid" / f"ind.cora.{name}"


def test_every_row_is_its_node_s_and_nodes_left_out_are_empty(planetoid: Path) -> None:
    graph = read(planetoid)
    assert graph.features.shape == (40, 6) and graph.features.dtype == np.float32
    known = np.setdiff1d(np.arange(40), [26, 31])
    assert graph.labels[known].tolist() == (known % 2).tolist() and graph.labels[[26, 31]].tolist() == [-1, -1]
    own = known[known != 5]
    assert (graph.features[own, own % 2] == 3.0).all() and not graph.features[[5, 26, 31]].any()
    assert (graph.classes, graph.train, graph.others) == (2, 4, 20)
    assert sorted(graph.test.tolist()) == [node for node in range(24, 40) if node not in (26, 31)]


def test_edges_go_both_ways_once_and_never_home(planetoid: Path) -> None:
    told = pickle.loads(part(planetoid, "graph").read_bytes())
    expected = sorted({pair for node, others in told.items() for other in others if other != node for pair in ((node, other), (other, node))})
    assert [tuple(edge) for edge in read(planetoid).edges.T.tolist()] == expected


def test_a_matrix_of_python_2_s_scipy_is_read_the_same(planetoid: Path) -> None:
    before = read(planetoid)
    for name in ("x", "tx", "allx"):
        file = part(planetoid, name)
        content = file.read_bytes()
        assert b"cscipy.sparse._csr\ncsr_matrix\n" in content
        file.write_bytes(content.replace(b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n").replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert np.array_equal(read(planetoid).features, before.features)


def test_entries_of_one_place_add_up(planetoid: Path) -> None:
    matrix = csr_matrix((np.array([1.0, 2.0, 5.0]), np.array([3, 3, 0]), np.array([0, 2, 2, 2, 3])), shape=(4, 6))
    part(planetoid, "x").write_bytes(pickle.dumps(matrix, protocol=2))
    assert read(planetoid).labels[0] == 0  # x is only compared by its shape: allx holds its rows
    whole = csr_matrix((np.array([1.0, 2.0]), np.array([3, 3]), np.array([0, 2] + [2] * 23)), shape=(24, 6))
    part(planetoid, "allx").write_bytes(pickle.dumps(whole, protocol=2))
    assert read(planetoid).features[0].tolist() == [0, 0, 0, 3, 0, 0]


def dumped(value: Any) -> Callable[[bytes], bytes]:
    return lambda _: pickle.dumps(value, protocol=2)


def changed(**how: Any) -> Callable[[bytes], bytes]:
    """A matrix of 24 x 6 with parts of it put in the place of its own."""

    def change(_: bytes) -> bytes:
        matrix = csr_matrix(np.eye(24, 6, dtype=np.float32))
        for name, value in how.items():
            setattr(matrix, name, value)
        return pickle.dumps(matrix, protocol=2)

    return change


ONE = np.eye(2, dtype=np.int32)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("allx", changed(indptr=np.full(25, 3, np.int32)), "row bounds are wrong"),
        ("allx", changed(indptr=np.array([0, 6] + [5] * 22 + [6], np.int32)), "row bounds are wrong"),
        ("allx", changed(indices=np.full(6, 6, np.int32)), "entry outside"),
        ("allx", changed(indices=np.full(6, -1, np.int32)), "entry outside"),
        ("allx", changed(data=np.ones(5, np.float32)), "do not belong together"),
        ("allx", changed(data=np.full(6, np.nan, np.float32)), "not finite"),
        ("allx", changed(_shape=(24, 1 << 40)), "more than 4 GiB"),
        ("allx", changed(_shape=(24, -6)), "which is none"),
        ("allx", dumped(np.zeros((24, 6))), "a _Array where a sparse matrix"),
        ("allx", lambda old: old[: len(old) // 2], "truncated or corrupt"),
        ("allx", dumped(csr_matrix(np.ones((23, 6)))), "allx has 23 rows and its labels are of shape"),
        ("tx", dumped(csr_matrix(np.ones((14, 7)))), "tx has 7 features and 2 classes, allx 6 and 2"),
        ("y", dumped(ONE[[1, 0, 1, 0]]), "does not begin with the labels of y"),
        ("ally", dumped(np.concatenate([ONE[np.arange(4) % 2], np.full((20, 2), 1)])), "not one-hot"),
        ("ty", dumped(np.zeros((14, 2), np.int32)), "needs one of two classes"),
        ("ty", dumped([1, 2]), "a list where an array should be"),
        ("test.index", lambda old: old.replace(b"24\n", b"25\n"), "13 different test nodes and tx has 14"),
        ("test.index", lambda old: old.replace(b"24\n", b"3\n"), "the 24 of allx come first"),
        ("test.index", lambda old: old.replace(b"24\n", b"99999999999\n"), "the 24 of allx come first"),
        ("test.index", lambda old: old.replace(b"24\n", b"x\n"), "one whole number a line"),
        ("test.index", lambda _: b"", "0 different test nodes"),
        ("graph", dumped(defaultdict(list, {0: [40]})), "something else than the nodes 0..39"),
        ("graph", dumped(defaultdict(list, {-1: [4]})), "something else than the nodes 0..39"),
        ("graph", dumped({0: ["1"]}), "no list of whole numbers"),
        ("graph", dumped({0: 1}), "no list of whole numbers"),
        ("graph", dumped([1]), "a list where node -> neighbours"),
        ("graph", dumped(defaultdict(dict, {0: [1]})), "asks for __builtin__.dict"),
        ("graph", lambda _: b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "asks for os.system: only arrays"),
        ("graph", lambda _: b"\x80\x02c__builtin__\nlist\n)\x81}X\x01\x00\x00\x00aK\x01sb.", "truncated or corrupt"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(planetoid: Path, name: str, change: Callable[[bytes], bytes], told: str) -> None:
    file = part(planetoid, name)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=told) as caught:
        read(planetoid)
    assert "ind.cora" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(planetoid: Path) -> None:
    part(planetoid, "graph").unlink()
    with pytest.raises(DataError, match=r"ind\.cora\.graph is missing: cora is the files"):
        read(planetoid)
