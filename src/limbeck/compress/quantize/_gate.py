"""Will it be faster? A probe of this machine answers before any work is done.

A graph's weighted operators are grouped by their shapes; the groups that hold nine tenths of its multiply-accumulates, five at most, are cut out as graphs of
one node, changed as the method would change them, and timed against what they were: batch 1, one thread, pinned to one processor where the platform can, the
two in turn. Each is timed once per process. What the whole would gain is predicted as (sum of times before) / (sum of times after): an estimate, for other
operators and the steps between them are left out. A method is refused where that is less than `PAYS`.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.bridges.onnx_runtime import session
from limbeck.core.errors import MismatchError

from ._calibration import activation_ranges, answers, expose, float_values, open_plain
from ._inputs import Inputs, fed
from ._qdq import WEIGHTED, able

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["PAYS", "Change", "Probe", "Row", "dense_zeros", "probe", "probe_whole", "refuse"]

PAYS = 1.05
"""How many times faster a file must be predicted to be."""

_COVERED, _GROUPS = 0.9, 5
_SHOWN = 2
_SECONDS, _WHOLE, _ROUNDS, _SLOT, _LONG = 0.12, 0.6, 3, 2e-3, 0.02
"""Seconds: of the rounds of two operators and of two graphs, the least rounds, of a slot, and of a run that is long enough to be timed once in a slot."""

Change = Callable[["ModelProto", Mapping[str, tuple[float, float]]], "ModelProto"]
"""What a method makes of a graph, given the ranges of its values."""

_TIMED: dict[tuple[str, str], tuple[float, float]] = {}
"""(method, operator with its shapes) -> milliseconds before and after, as timed in this process."""


@dataclass(frozen=True)
class Row:
    """Nodes of one operator and shape: how many, their share of the graph's multiply-accumulates, and milliseconds of one before and after.

    `left`: the method does not change them; `after_ms` is what it would make of them.
    """

    operator: str
    nodes: int
    share: float
    before_ms: float
    after_ms: float
    left: bool = False

    def __str__(self) -> str:
        times = f"{self.before_ms:.3g} ms, {self.after_ms:.3g} ms after ({self.before_ms / self.after_ms:.2f}x)"
        many = f", {self.nodes} of them, {self.share:.0%} of the multiply-accumulates" if self.nodes > 1 or self.share < 1 else ""
        return f"{self.operator}{many}: {times}{', and so left as they are' if self.left else ''}"


@dataclass(frozen=True)
class Probe:
    """What was timed of a method on a graph."""

    method: str
    rows: Sequence[Row]

    @property
    def ratio(self) -> float:
        """How many times faster the dominant operators would be, all together."""
        before = sum(row.nodes * row.before_ms for row in self.rows)
        return before / sum(row.nodes * (row.before_ms if row.left else row.after_ms) for row in self.rows)

    def told(self) -> dict[str, Any]:
        """Return it JSON-able."""
        return {"method": self.method, "predicted_ratio": self.ratio, "threads": 1, "batch": 1, "rows": [asdict(row) for row in self.rows]}


def refuse(found: Probe, source: str, way_out: str, *, least: float = PAYS, force: bool = False) -> list[str]:
    """Return what there is to say of a probe that was forced, and nothing of one that pays.

    Raises:
        MismatchError: it does not pay and was not forced; the message has its figures.
    """
    if found.ratio >= least:
        return []
    more = f"; and {len(found.rows) - _SHOWN} more" if len(found.rows) > _SHOWN else ""
    figures = "; ".join(map(str, found.rows[:_SHOWN])) + more
    said = f"{found.method} would not make {source} faster on this machine: {found.ratio:.2f}x, by a probe ({figures})"
    if not force:
        raise MismatchError(f"{said}; {way_out}, or force: true")
    return [f"forced: {said}"]


def probe(
    model: "ModelProto", example: Inputs, method: str, change: Change, *, before: Change | None = None, kept: Collection[str] = (),
    left: Collection[str] = (), only: Collection[str] = WEIGHTED,
) -> Probe:  # fmt: skip
    """Time what `change` makes of a graph's dominant operators against what `before` makes of them, or what they are.

    `example [1, ...]`: an input, real if need be; `kept`: nodes that stay as they are and are not timed; `left`: operators that the method leaves; `only`: the
    operators that are looked at.

    Raises:
        MismatchError: no operator to time.
    """
    nodes = [node for node in model.graph.node if node.op_type in only and node.name not in kept]
    if not nodes:
        raise MismatchError(f"{method}: the graph has none of {', '.join(sorted(only))} to time")
    values = _values(model, nodes, example)
    groups: dict[str, list[NodeProto]] = {}
    for node in nodes:
        groups.setdefault(_signature(model, node, values), []).append(node)
    macs = {name: len(group) * _macs(model, group[0], values) for name, group in groups.items()}
    total, taken, rows = sum(macs.values()) or 1, 0, []
    for name in sorted(macs, key=lambda each: -macs[each])[:_GROUPS]:
        if taken >= _COVERED * total:
            break
        taken += macs[name]
        first = groups[name][0]
        key = (method, name)
        if key not in _TIMED:
            _TIMED[key] = _time(_alone(model, first, values), values, change, before)
        shown = name.partition(" | ")[0]
        rows.append(Row(shown, len(groups[name]), macs[name] / total, *_TIMED[key], left=first.op_type in left))
    return Probe(method, rows)


def probe_whole(model: "ModelProto", example: Inputs, method: str, change: Change, before: Change) -> Probe:
    """Time what `change` makes of a whole graph against what `before` makes of it: for methods whose cost is in how nodes meet, which one alone does not show.

    Ranges are those of one example, for they change no time; the last processor, one thread and batch 1 as in `probe`.
    """
    ranges = activation_ranges(model, example, float_values(model.graph, able()), calibration="minmax", percentile=100.0, batch=1)
    first, second = (make(model, ranges).SerializeToString() for make in (before, change))
    return Probe(method, [Row("the whole graph", 1, 1.0, *_paired(first, second, fed(open_plain(model), example), _WHOLE))])


def dense_zeros(inner: int, outer: int, *, share: float = 0.5, examples: int = 1) -> Probe:
    """Time a dense product `[examples, inner] x [inner, outer]` of which a `share` of the weights is zero, in no pattern, against one without zeros."""
    from onnx import TensorProto, helper, numpy_helper

    drawn = np.random.default_rng(0)
    weight = drawn.standard_normal((inner, outer)).astype(np.float32)

    def product(values: np.ndarray) -> bytes:
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [examples, size]) for name, size in (("x", inner), ("y", outer)))
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(values, "w")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()

    method, name = f"{share:.0%} zeros in a dense product", f"MatMul [{examples}, {inner}] x [{inner}, {outer}]"
    if (method, name) not in _TIMED:
        sparse = np.where(drawn.random(weight.shape) < share, 0, weight).astype(np.float32)
        _TIMED[method, name] = _paired(product(weight), product(sparse), {"x": drawn.standard_normal((examples, inner)).astype(np.float32)})
    return Probe(method, [Row(name, 1, 1.0, *_TIMED[method, name])])


def _values(model: "ModelProto", nodes: Sequence["NodeProto"], example: Inputs) -> dict[str, np.ndarray]:
    """Return what the nodes read and give, of one example; constants are left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = list(dict.fromkeys(name for node in nodes for name in (*node.input, *node.output) if name and name not in constants))
    return dict(zip(names, answers(open_plain(expose(model, names)), example), strict=True))


def _shape(model: "ModelProto", name: str, values: Mapping[str, np.ndarray]) -> list[int]:
    return list(values[name].shape) if name in values else next(list(tensor.dims) for tensor in model.graph.initializer if tensor.name == name)


def _signature(model: "ModelProto", node: "NodeProto", values: Mapping[str, np.ndarray]) -> str:
    """Say what a node's time depends on: its operator, shapes and, after a bar, attributes and which inputs are constants."""
    first, second = (_shape(model, name, values) for name in node.input[:2])
    attributes = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
    return f"{node.op_type} {first} x {second} | {len(node.input)} {node.input[1] in values} {' '.join(attributes)}"


def _macs(model: "ModelProto", node: "NodeProto", values: Mapping[str, np.ndarray]) -> int:
    """Return the multiply-accumulates of a node: each number that a convolution gives, and that a transposed one takes, meets one kernel."""
    first, weight = (_shape(model, name, values) for name in node.input[:2])
    if node.op_type == "Conv":
        return values[node.output[0]].size * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(weight[1:])
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return values[node.output[0]].size * first[-2 if turned else -1]


def _alone(model: "ModelProto", node: "NodeProto", values: Mapping[str, np.ndarray]) -> "ModelProto":
    """Return a graph of one node, with the constants that it reads."""
    from onnx import ModelProto, helper

    made = ModelProto()
    made.CopyFrom(model)
    for field in ("node", "initializer", "input", "output", "value_info"):
        made.graph.ClearField(field)  # pyright: ignore[reportArgumentType]
    made.graph.node.append(node)
    made.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in node.input)
    for names, place in ((node.input, made.graph.input), (node.output, made.graph.output)):
        for name in dict.fromkeys(names):
            if name in values:
                kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
                place.append(helper.make_tensor_value_info(name, kind, values[name].shape))
    return made


def _time(alone: "ModelProto", values: Mapping[str, np.ndarray], change: Change, before: Change | None) -> tuple[float, float]:
    names = [value.name for value in (*alone.graph.input, *alone.graph.output)]
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in names}
    first = (before(alone, ranges) if before else alone).SerializeToString()
    second = change(alone, ranges).SerializeToString()
    return _paired(first, second, {value.name: values[value.name] for value in alone.graph.input})


def _paired(first: bytes, second: bytes, feeds: Mapping[str, np.ndarray], seconds: float = _SECONDS) -> tuple[float, float]:
    """Return the milliseconds of a run of each of two graphs, timed in turn; the second's is the first's over the median ratio of the rounds."""
    with _pinned():
        opened = [session(graph, threads=1) for graph in (first, second)]
        for one in opened:
            one.run(None, feeds)
        runs = [max(1 if once > _LONG else 3, math.ceil(_SLOT / once)) for once in (_slot(one, feeds, 3) for one in opened)]
        taken: list[list[float]] = []
        start = time.perf_counter()
        while len(taken) < _ROUNDS or time.perf_counter() - start < seconds:
            turn = (0, 1) if len(taken) % 2 else (1, 0)
            found = {index: _slot(opened[index], feeds, runs[index]) for index in turn}
            taken.append([found[0], found[1]])
    times = np.array(taken)  # [rounds, 2]
    before = float(np.median(times[:, 0])) * 1e3
    return before, before / float(np.median(times[:, 0] / times[:, 1]))


def _slot(opened: Any, feeds: Mapping[str, np.ndarray], runs: int) -> float:
    """Return the seconds of the quickest of several runs."""
    least = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        opened.run(None, feeds)
        least = min(least, time.perf_counter() - start)
    return least


@contextmanager
def _pinned() -> Iterator[None]:
    """Hold this thread on the last processor that it may use, where the platform can."""
    if sys.platform != "linux":
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
