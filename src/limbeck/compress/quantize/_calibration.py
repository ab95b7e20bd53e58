"""The range of every activation, measured on real inputs: what of it 8 bits shall cover.

A range [a, b] is told by 256 levels: S = (b - a) / 255 and Z = round(-a / S), with a <= 0 <= b so that zero stays exact (Jacob et al., CVPR 2018,
arXiv:1712.05877, sec. 3). What lies beyond is clipped, so a narrower range trades clipping for a finer step.

minmax      all that was seen
percentile  what lies between the (100 - p) / 2 and (100 + p) / 2 percentiles
mse         the range whose rounding and clipping leave the least squared error: sum over bins of h(x) (Q(x) - x)^2
entropy     the range |x| <= T for which D(P || Q) is least: Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017. P is the histogram
            within T, what lies beyond added to its ends; Q the histogram within T merged into the levels and spread again over the bins that were not empty

Histograms have 2,048 bins from the least value seen to the greatest. Exact zeros, which every range keeps exact, count for the percentile alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ._inputs import Inputs, cut, fed, pieces

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from onnxruntime import InferenceSession

__all__ = [
    "BINS",
    "CALIBRATIONS",
    "Histogram",
    "activation_ranges",
    "answers",
    "entropy_range",
    "expose",
    "float_values",
    "mse_range",
    "open_plain",
    "percentile_range",
]

BINS = 2048
CALIBRATIONS = ("minmax", "percentile", "entropy", "mse")
_STEPS = 255
_FLOATS = 2**24
"""Numbers held at once, of all activations together; below this float32 counts exactly."""
_FLOAT = 1
"""TensorProto.FLOAT."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """How often values were seen: `counts [B]` of those that are not zero, in equal bins from `low` to `high`, and how many zeros."""

    counts: np.ndarray
    low: float
    high: float
    zeros: float = 0.0

    @property
    def centres(self) -> np.ndarray:
        return self.low + (np.arange(len(self.counts)) + 0.5) * (self.high - self.low) / len(self.counts)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Return the two values between which `percentile` % of all that was seen lie, as much beyond one as beyond the other.

    >>> percentile_range(Histogram(np.ones(100), 0.0, 100.0), 98.0)
    (1.0, 99.0)
    """
    counts = histogram.counts.astype(np.float64)
    edges = np.linspace(histogram.low, histogram.high, len(counts) + 1)
    if histogram.zeros and histogram.low <= 0 <= histogram.high:
        counts[min(int(np.searchsorted(edges, 0.0, "right")) - 1, len(counts) - 1)] += histogram.zeros
    share = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
    cut = (100.0 - percentile) / 200.0
    return float(edges[max(int(np.searchsorted(share, cut, "right")) - 1, 0)]), float(edges[int(np.searchsorted(share, 1.0 - cut, "left"))])


def _levels(values: np.ndarray, low: Any, high: Any) -> tuple[np.ndarray, Any, Any]:
    """Return the level of each value in 0..255, the step and the zero point; `low` and `high` may be columns `[K, 1]` of several ranges."""
    step = (high - low) / _STEPS
    zero = np.round(-low / step)
    return np.clip(np.round(values / step) + zero, 0, _STEPS), step, zero


def _squared_errors(histogram: Histogram, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return what rounding and clipping do to all that was seen, for K ranges `[K]`."""
    values = histogram.centres
    levels, step, zero = _levels(values, low[:, None], high[:, None])
    return (histogram.counts * ((levels - zero) * step - values) ** 2).sum(1)


def mse_range(histogram: Histogram, *, tried: int = 100) -> Range:
    """Return the range of least squared error, found by moving either end in turn over `tried` places, until neither helps."""
    outer = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shares, best = np.linspace(1.0, 1.0 / tried, tried), outer
    for _ in range(4):
        before = best
        for end in (0, 1):
            if outer[end]:
                low, high = (shares * outer[0], np.full(tried, best[1])) if end == 0 else (np.full(tried, best[0]), shares * outer[1])
                place = int(_squared_errors(histogram, low, high).argmin())  # the widest of equals
                best = float(low[place]), float(high[place])
        if best == before:
            break
    return best


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    """Return D(P || Q) in nats of the histogram clipped to a range and of what the levels leave of it."""
    values, counts = histogram.centres, histogram.counts.astype(np.float64)
    inside = np.flatnonzero((values >= low) & (values <= high))
    if not len(inside):
        return np.inf
    within = counts[inside]
    p = within.copy()
    p[0] += counts[: inside[0]].sum()
    p[-1] += counts[inside[-1] + 1 :].sum()
    level = _levels(values[inside], min(low, 0.0), max(high, 0.0))[0].astype(np.int64)
    mass, filled = np.bincount(level, within), np.bincount(level, within > 0)
    q = np.where(within > 0, (mass / np.maximum(filled, 1))[level], 0.0)
    if not q.any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))).sum())


def entropy_range(histogram: Histogram) -> Range:
    """Return the range |x| <= T, within what was seen, of least divergence; T is an eighth of the greatest |x| or more: fewer bins than levels tell nothing."""
    widest = max(-histogram.low, histogram.high)
    found: list[tuple[float, Range]] = []
    for share in np.arange(128, 15, -1) / 128:
        ends = max(histogram.low, -share * widest), min(histogram.high, share * widest)
        if ends[0] < ends[1]:
            found.append((_divergence(histogram, *ends), ends))
    low, high = min(found, key=lambda pair: pair[0])[1]
    return float(low), float(high)


def float_values(graph: "GraphProto", able: Collection[str]) -> list[str]:
    """Return what is calibrated: floats that nodes of the operators `able` read or give, and that are no weights."""
    typed = (*graph.value_info, *graph.input, *graph.output)
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == _FLOAT} - {tensor.name for tensor in graph.initializer}
    return list(dict.fromkeys(name for node in graph.node if node.op_type in able for name in (*node.input, *node.output) if name in floats))


def expose(model: "ModelProto", names: Collection[str]) -> "ModelProto":
    """Return a copy of a model that gives the values `names`, in that order, and nothing else."""
    from onnx import ModelProto, helper

    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return made


def open_plain(model: "ModelProto") -> "InferenceSession":
    """Open a model as it is written, no node fused with another, so that every value in it can be asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(opened: "InferenceSession", inputs: Inputs) -> list[np.ndarray]:
    """Return all that a file gives for its inputs."""
    return [np.asarray(value) for value in opened.run(None, fed(opened, inputs))]


def activation_ranges(
    model: "ModelProto", inputs: Inputs, values: Sequence[str], *, calibration: str, percentile: float, batch: int
) -> dict[str, Range]:  # fmt: skip
    """Return value name -> [least, greatest] that 8 bits shall cover, measured on inputs `[N, ...]`; of `values` those that are always finite."""
    seen = {name: ends for name, ends in _extremes(model, inputs, values, batch).items() if np.isfinite(ends).all()}
    if calibration == "minmax":
        return seen
    made: dict[str, Range] = {name: ends for name, ends in seen.items() if ends[0] == ends[1]}
    for name, histogram in _histograms(model, inputs, {name: ends for name, ends in seen.items() if name not in made}).items():
        chosen = {
            "percentile": lambda one: percentile_range(one, percentile), "entropy": entropy_range, "mse": mse_range,
        }[calibration](histogram)  # fmt: skip
        made[name] = chosen if chosen[0] < chosen[1] else seen[name]
    return {name: made[name] for name in seen}


def _extremes(model: "ModelProto", inputs: Inputs, names: Sequence[str], batch: int) -> dict[str, Range]:
    """Return the least and greatest of each value; they are reduced within the graph, so that no activation is kept."""
    from onnx import helper

    made = expose(model, [])
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            made.graph.node.append(helper.make_node(kind, [name], [f"{name}.{kind}"], keepdims=0))
            made.graph.output.append(helper.make_empty_tensor_value_info(f"{name}.{kind}"))
    if not names:
        return {}
    opened = open_plain(made)
    runs = np.array([answers(opened, part) for part in pieces(inputs, batch)], np.float32)  # [runs, 2 values]
    low, high = runs[:, 0::2].min(0), runs[:, 1::2].max(0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(names)}


def _histograms(model: "ModelProto", inputs: Inputs, seen: Mapping[str, Range]) -> dict[str, Histogram]:
    if not seen:
        return {}
    opened = open_plain(expose(model, list(seen)))
    batch = max(1, _FLOATS // max(1, sum(value.size for value in answers(opened, cut(inputs, slice(1))))))
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in seen}
    zeros = dict.fromkeys(seen, 0)
    for part in pieces(inputs, batch):
        for (name, (low, high)), value in zip(seen.items(), answers(opened, part), strict=True):
            flat = torch.from_numpy(np.ascontiguousarray(value)).flatten()
            flat_zeros = len(flat) - int(flat.count_nonzero())
            zeros[name] += flat_zeros
            counts[name] += torch.histc(flat, BINS, low, high).double()
            if flat_zeros:
                counts[name] -= torch.histc(torch.zeros(1), BINS, low, high).double() * flat_zeros
    return {name: Histogram(counts[name].numpy(), *ends, zeros=zeros[name]) for name, ends in seen.items()}
