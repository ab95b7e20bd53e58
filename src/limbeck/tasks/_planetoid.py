"""The citation graphs of Planetoid: Cora, CiteSeer and PubMed with their public split.

Yang et al., "Revisiting Semi-Supervised Learning with Graph Embeddings", ICML 2016, arXiv:1603.08861; https://github.com/kimiyoung/planetoid. Of each data set
eight files `ind.NAME.*`: features and one-hot labels of the labelled training nodes (`x`, `y`), of all nodes that are not for testing (`allx`, `ally`, the
training nodes first) and of the test nodes (`tx`, `ty`), in the order in which `test.index` numbers them; `graph`, node -> its neighbours.
Numbers within the test range that `test.index` leaves out (CiteSeer has 15) are nodes without features and label.

Shapes: M nodes, F features, C classes, E directed edges.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

from ._idx import read_bytes
from ._pickled import Admitted, as_array, read_object

__all__ = ["UNLABELLED", "Citations", "planetoid_files", "read_planetoid"]

_PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
_LIMIT = 4 << 30
"""Bytes of dense float32 features beyond which a graph is refused."""
UNLABELLED = -1


@dataclass(frozen=True)
class Citations:
    """Features `[M, F]` float32, labels `[M]` int64 (-1 where there is none), edges `[2, E]` int64, each in both directions, once, without self-loops, sorted.

    The first `train` nodes are labelled for training, `test` numbers the test nodes, those between are neither.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    classes: int
    train: int
    others: int
    test: npt.NDArray[np.int64]


class _Csr:
    """`scipy.sparse.csr_matrix`, its content set afterwards as a mapping with `_shape`, `data`, `indices` and `indptr`."""

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def dense(self) -> npt.NDArray[np.float32]:
        if not isinstance(self.state, dict):
            raise ValueError("a sparse matrix without content")
        state = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in self.state.items()}
        rows, columns = state["_shape"]
        data, indices, starts = (as_array(state[name]) for name in ("data", "indices", "indptr"))
        if not all(isinstance(size, int) and size > 0 for size in (rows, columns)) or rows * columns * 4 > _LIMIT:
            raise ValueError(f"a sparse matrix of {rows} x {columns}, which is none or more than {_LIMIT >> 30} GiB")
        if not data.ndim == indices.ndim == starts.ndim == 1 or len(data) != len(indices) or indices.dtype.kind not in "iu" or starts.dtype.kind not in "iu":
            raise ValueError("a sparse matrix whose parts do not belong together")
        counts = np.diff(starts.astype(np.int64))
        if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(data) or (counts < 0).any():
            raise ValueError(f"a sparse matrix of {rows} rows whose row bounds are wrong")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
            raise ValueError(f"a sparse matrix of {columns} columns with an entry outside of them")
        if not np.isfinite(data).all():
            raise ValueError("a sparse matrix with a value that is not finite")
        dense = np.zeros((rows, columns), np.float32)
        np.add.at(dense, (np.repeat(np.arange(rows), counts), indices), data)
        return dense


class _Lists:
    """`collections.defaultdict(list)`: a plain dictionary, filled afterwards."""

    def __new__(cls, *_factory: object) -> "dict[Any, Any]":  # pyright: ignore[reportInconsistentConstructor]
        return {}

    def __setstate__(self, state: object) -> NoReturn:  # without it a pickle could set attributes
        raise ValueError("nothing to set")


class _List:
    """`list`, which is named as what a `defaultdict` makes, and never called."""

    def __init__(self) -> None:
        raise ValueError("a list is not made so")

    def __setstate__(self, state: object) -> NoReturn:
        raise ValueError("nothing to set")


_MATRIX: Admitted = {("scipy.sparse.csr", "csr_matrix"): _Csr, ("scipy.sparse._csr", "csr_matrix"): _Csr}
_GRAPH: Admitted = {("collections", "defaultdict"): _Lists, ("__builtin__", "list"): _List, ("builtins", "list"): _List}


def planetoid_files(folder: Path, name: str) -> list[Path]:
    """Return the eight files of a data set."""
    files = [folder / f"ind.{name}.{part}" for part in _PARTS]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is missing: {name} is the files ind.{name}.* with {', '.join(_PARTS)} in one folder")
    return files


def read_planetoid(files: list[Path]) -> Citations:
    """Read what `planetoid_files` found.

    Raises:
        DataError: a file that is damaged or asks for more than arrays, or files that do not belong together.
    """
    x, tx, allx = (read_object(files[number], _matrix, _MATRIX) for number in (0, 2, 4))
    y, ty, ally = (read_object(files[number], as_array) for number in (1, 3, 5))
    where = files[0].parent / files[0].stem
    for name, features, labels in (("x", x, y), ("tx", tx, ty), ("allx", allx, ally)):
        if labels.ndim != 2 or len(labels) != len(features):
            raise DataError(f"{where}.{name} has {len(features)} rows and its labels are of shape {list(labels.shape)}: the files do not belong together")
        if features.shape[1] != allx.shape[1] or labels.shape[1] != ally.shape[1]:
            raise DataError(
                f"{where}.{name} has {features.shape[1]} features and {labels.shape[1]} classes, allx {allx.shape[1]} and {ally.shape[1]}: "
                "the files do not belong together"
            )
    if len(x) > len(allx) or not np.array_equal(y, ally[: len(y)]):
        raise DataError(f"{where}.ally does not begin with the labels of y: the files do not belong together")
    test = _test_index(files[7], len(tx), len(allx))
    nodes = int(test.max()) + 1
    features = np.zeros((nodes, allx.shape[1]), np.float32)
    labels = np.full(nodes, UNLABELLED, np.int64)
    features[: len(allx)], features[test] = allx, tx
    labels[: len(allx)], labels[test] = _classes(ally, f"{where}.ally"), _classes(ty, f"{where}.ty")
    edges = read_object(files[6], lambda found: _edges(found, nodes), _GRAPH)
    if ally.shape[1] < 2 or (labels[: len(x)] < 0).any() or (labels[test] < 0).any():
        raise DataError(f"{where}: every node for training and testing needs one of two classes or more")
    return Citations(features, labels, edges, ally.shape[1], len(x), len(allx) - len(x), test)


def _matrix(found: Any) -> npt.NDArray[np.float32]:
    if not isinstance(found, _Csr):
        raise ValueError(f"a {type(found).__name__} where a sparse matrix should be")
    return found.dense()


def _classes(one_hot: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    """The class of each one-hot row, -1 of a row of zeros."""
    if not np.isin(one_hot, (0, 1)).all() or (one_hot.sum(1) > 1).any():
        raise DataError(f"{where} holds a row that is not one-hot: the file is damaged")
    return np.where(one_hot.sum(1) == 1, one_hot.argmax(1), UNLABELLED).astype(np.int64)


def _test_index(path: Path, count: int, first: int) -> npt.NDArray[np.int64]:
    try:
        index = np.array([int(line) for line in read_bytes(path).split()], np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"{path} is damaged: it must hold one whole number a line") from None
    if len(index) != count or len(np.unique(index)) != count or not count:
        raise DataError(f"{path} names {len(np.unique(index))} different test nodes and tx has {count}: the files do not belong together")
    if index.min() < first or index.max() >= first + 10 * count:
        raise DataError(f"{path} names nodes {index.min()} to {index.max()}, and the {first} of allx come first: the files do not belong together")
    return index


def _edges(found: Any, nodes: int) -> npt.NDArray[np.int64]:
    """Every edge in both directions, once, sorted by source and target; self-loops are left out."""
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} where node -> neighbours should be")
    pairs = [(node, neighbour) for node, neighbours in found.items() for neighbour in _whole(neighbours)]
    if not all(type(node) is int and 0 <= node < nodes for node in found) or not all(0 <= other < nodes for _, other in pairs):
        raise ValueError(f"an edge to or from something else than the nodes 0..{nodes - 1}")
    codes = {one * nodes + other for a, b in pairs if a != b for one, other in ((a, b), (b, a))}
    ordered = np.array(sorted(codes), np.int64)
    return np.stack([ordered // nodes, ordered % nodes])


def _whole(neighbours: Any) -> list[int]:
    if not isinstance(neighbours, list) or not all(type(one) is int for one in neighbours):
        raise ValueError("neighbours that are no list of whole numbers")
    return neighbours
