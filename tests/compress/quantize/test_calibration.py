import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from limbeck.compress.quantize._calibration import (
    BINS,
    Histogram,
    _histograms,
    activation_ranges,
    entropy_range,
    float_values,
    mse_range,
    percentile_range,
)


def histogram(values):
    values = np.asarray(values, np.float64)
    counts, _ = np.histogram(values[values != 0], BINS, (values.min(), values.max()))
    return Histogram(counts.astype(np.float64), values.min(), values.max(), zeros=float((values == 0).sum()))


def rounded(values, low, high):
    """The values themselves through 256 levels."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    return (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step


def tailed(kind, n=4000):
    rng = np.random.default_rng(0)
    drawn = rng.standard_t(2.5, n)
    return {"both": drawn, "positive": np.abs(drawn), "negative": -np.abs(drawn), "relu": np.maximum(drawn, 0)}[kind]


@pytest.mark.parametrize("kind", ["both", "positive", "negative", "relu"])
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_range_holds_that_share_of_the_values_and_no_bin_more(kind, percentile):
    values = tailed(kind)
    low, high = percentile_range(histogram(values), percentile)
    cut, width = (100 - percentile) / 200, (values.max() - values.min()) / BINS
    for beyond, next_bin in (((values < low - 1e-9), values < low + 1.001 * width), ((values > high + 1e-9), values > high - 1.001 * width)):
        assert beyond.mean() <= cut + 1e-9
        assert next_bin.mean() > cut - 1e-9


def test_all_of_it_is_minmax():
    values = tailed("both")
    assert percentile_range(histogram(values), 100.0) == pytest.approx((values.min(), values.max()))


@pytest.mark.parametrize("kind", ["both", "positive", "negative", "relu"])
def test_the_mse_range_is_the_best_that_a_naive_search_finds(kind):
    values = tailed(kind)
    found = mse_range(histogram(values))
    shares = np.linspace(0.05, 1, 20)
    lows, highs = (shares * ends if ends else [0.0] for ends in (min(values.min(), 0), max(values.max(), 0)))
    naive = min(((rounded(values, low, high) - values) ** 2).mean() for low in lows for high in highs)
    assert ((rounded(values, *found) - values) ** 2).mean() <= 1.02 * naive
    assert found[0] <= 0 <= found[1]


def test_mse_cuts_what_is_too_rare_for_its_price():
    """A million in [-1, 1] and k at 30: (h + 1)^2 / (12 255^2) of rounding and k 10^-6 (30 - h)^2 of clipping are least at h = (30 k - 1.28) / (k + 1.28)."""
    counts = np.zeros(BINS)
    counts[: BINS * 2 // 31] = 1e6 / (BINS * 2 // 31)
    for k, best in ((1, 12.6), (100, 29.6)):
        counts[-1] = k
        low, high = mse_range(Histogram(counts, -1.0, 30.0))
        assert low == pytest.approx(-1, abs=0.1)
        assert high == pytest.approx(best, abs=2)


def divergence(counts, centres, low, high):
    """D(P || Q) bin by bin, as Migacz tells it."""
    inside = [i for i, centre in enumerate(centres) if low <= centre <= high]
    p = {i: counts[i] for i in inside}
    p[inside[0]] += sum(counts[: inside[0]])
    p[inside[-1]] += sum(counts[inside[-1] + 1 :])
    bottom, top = min(low, 0.0), max(high, 0.0)
    step = (top - bottom) / 255
    level = {i: min(max(round(centres[i] / step) + round(-bottom / step), 0), 255) for i in inside}
    groups = {}
    for i in inside:
        groups.setdefault(level[i], []).append(i)
    q = {}
    for members in groups.values():
        filled = [i for i in members if counts[i] > 0]
        for i in filled:
            q[i] = sum(counts[j] for j in members) / len(filled)
    p_sum, q_sum = sum(p.values()), sum(q.values())
    return sum(p[i] / p_sum * math.log(p[i] / p_sum / max(q.get(i, 0.0) / q_sum, 1e-9)) for i in inside if p[i] > 0)


@pytest.mark.parametrize("kind", ["both", "positive", "relu"])
def test_the_entropy_range_has_the_least_divergence_of_those_tried(kind):
    one = histogram(tailed(kind))
    found = entropy_range(one)
    widest = max(-one.low, one.high)
    tried = [(max(one.low, -share * widest), min(one.high, share * widest)) for share in np.arange(128, 15, -8) / 128]
    naive = {ends: divergence(one.counts, one.centres, *ends) for ends in tried}
    assert divergence(one.counts, one.centres, *found) <= min(naive.values()) + 1e-9
    assert found[1] < one.high, "a heavy tail is cut"


def test_entropy_keeps_a_range_without_a_tail_and_cuts_an_outlier():
    rng = np.random.default_rng(0)
    even = rng.uniform(-1, 1, 50_000)
    low, high = entropy_range(histogram(even))
    assert (low, high) == pytest.approx((-1, 1), abs=0.05)
    outlier = np.append(even, 8.0)
    assert entropy_range(histogram(outlier))[1] < 2


def net(weight=None):
    """y = relu(x W) and z = y + 1, with a mask of integers beside it."""
    weight = np.eye(3, dtype=np.float32) if weight is None else weight
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="fc/MatMul"),
        helper.make_node("Relu", ["p"], ["y"], name="act/Relu"),
        helper.make_node("Shape", ["y"], ["size"], name="Shape"),
        helper.make_node("Add", ["y", "one"], ["z"], name="Add"),
    ]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xz")
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32([1, 1, 1]), "one")]
    graph = helper.make_graph(nodes, "g", [x], [z], constants)
    return infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def ranges(model, inputs, calibration, **options):
    values = float_values(model.graph, {"MatMul", "Relu", "Add"})
    return activation_ranges(model, inputs, values, calibration=calibration, batch=7, **{"percentile": 99.0, **options})


def test_extremes_are_those_of_the_values_themselves():
    inputs = torch.randn(50, 3)
    found = ranges(net(), inputs, "minmax")
    assert found == {
        "x": (inputs.min().item(), inputs.max().item()),
        "p": (inputs.min().item(), inputs.max().item()),
        "y": (0.0, inputs.max().item()),
        "z": (1.0, (inputs.relu() + 1).max().item()),
    }


@pytest.mark.parametrize(("calibration", "choose"), [("mse", mse_range), ("entropy", entropy_range), ("percentile", lambda one: percentile_range(one, 99.0))])
def test_ranges_of_a_graph_are_those_of_its_values(calibration, choose):
    inputs = torch.from_numpy(tailed("both", 900).reshape(300, 3)).float()
    found = ranges(net(), inputs, calibration)
    for name, values in (("x", inputs), ("y", inputs.relu())):
        assert found[name] == pytest.approx(choose(histogram(values.numpy())), rel=0.02, abs=0.02)


def test_a_histogram_counts_every_value_once_and_zeros_apart(monkeypatch):
    monkeypatch.setattr("limbeck.compress.quantize._calibration._FLOATS", 40)  # three examples at a time
    inputs = torch.randn(50, 3)
    inputs[3] = 0
    seen = {"x": (inputs.min().item(), inputs.max().item()), "y": (0.0, inputs.max().item())}
    found = _histograms(net(), inputs, seen)
    for name, values in (("x", inputs), ("y", inputs.relu())):
        assert found[name].zeros == (values == 0).sum()
        assert found[name].counts.sum() + found[name].zeros == values.numel()
        assert (found[name].counts >= 0).all()


def test_a_value_that_never_changes_keeps_its_range():
    inputs = torch.rand(20, 3)
    found = ranges(net(np.zeros((3, 3), np.float32)), inputs, "mse")
    assert found["p"] == found["y"] == (0.0, 0.0)
    assert found["z"] == (1.0, 1.0)


def test_values_that_are_not_finite_have_no_range():
    found = ranges(net(np.full((3, 3), 3e38, np.float32)), torch.full((20, 3), 9.0), "mse")
    assert found == {"x": (9.0, 9.0)}
