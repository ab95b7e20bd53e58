import json
import math
import os
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from limbeck.compress.quantize import _gate
from limbeck.compress.quantize._gate import PAYS, Probe, Row, dense_zeros, probe, probe_whole, refuse
from limbeck.compress.quantize._qdq import able
from limbeck.compress.quantize.static_int8 import StaticInt8
from limbeck.core.errors import MismatchError
from limbeck.export.onnx import Onnx


def row(before, after, **other):
    return Row(**{"operator": "Conv [1, 8, 4, 4] x [8, 8, 3, 3]", "nodes": 1, "share": 1.0, "before_ms": before, "after_ms": after, **other})


def test_the_ratio_is_of_all_times_together():
    assert Probe("m", [row(3, 1)]).ratio == 3
    assert Probe("m", [row(3, 1, nodes=2), row(2, 4)]).ratio == pytest.approx((6 + 2) / (2 + 4))
    assert Probe("m", [row(3, 30, left=True), row(2, 1)]).ratio == pytest.approx(5 / 4)


def test_what_pays_is_let_pass_without_a_word():
    assert refuse(Probe("m", [row(PAYS, 1)]), "a.onnx", "do b") == []
    assert refuse(Probe("m", [row(0.96, 1)]), "a.onnx", "do b", least=0.95) == []


def test_what_does_not_pay_is_refused_with_its_figures_and_the_way_out():
    found = Probe("dynamic INT8", [row(0.5, 2.0, nodes=3, share=0.62), row(1, 1), row(1, 1), row(1, 1)])
    with pytest.raises(MismatchError) as error:
        refuse(found, "a.onnx", "use static_int8")
    said = str(error.value)
    assert said.startswith("dynamic INT8 would not make a.onnx faster on this machine: 0.50x")
    assert "Conv [1, 8, 4, 4] x [8, 8, 3, 3], 3 of them, 62% of the multiply-accumulates: 0.5 ms, 2 ms after (0.25x)" in said
    assert said.endswith("and 2 more); use static_int8, or force: true")
    assert "\n" not in said


def test_force_lets_it_pass_and_says_so():
    (note,) = refuse(Probe("dynamic INT8", [row(1, 4, left=True)]), "a.onnx", "use static_int8", force=True)
    assert note.startswith("forced: dynamic INT8 would not make a.onnx faster")
    assert "and so left as they are" in note
    assert "force: true" not in note


class Net(nn.Module):
    """Two convolutions of one shape, one of another, a transposed one, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 8, 3, stride=2, groups=2)
        self.d = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6 * 6 * 6, 5)

    def forward(self, x):
        return self.head(self.d(self.c(self.b(self.a(x).relu()).relu())).flatten(1))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "model.onnx"
    torch.manual_seed(0)
    Onnx().export(Net(), torch.randn(2, 4, 8, 8), path)
    return onnx.shape_inference.infer_shapes(onnx.load(path))


@pytest.fixture
def timed(monkeypatch):
    """Say of every pair of graphs that it takes 3 ms and then 1; keep what was asked."""
    asked = []

    def paired(first, second, feeds, seconds=0.0):
        asked.append((onnx.load_from_string(first), onnx.load_from_string(second), feeds))
        return 3.0, 1.0

    monkeypatch.setattr(_gate, "_paired", paired)
    monkeypatch.setattr(_gate, "_TIMED", {})
    return asked


def test_dominant_shapes_are_timed_alone_and_once(model, timed, monkeypatch):
    monkeypatch.setattr(_gate, "_COVERED", 1.0)
    found = probe(model, torch.randn(1, 4, 8, 8), "twice", lambda graph, _: graph)
    macs = {
        "Conv [1, 4, 8, 8] x [4, 4, 3, 3]": (2, 2 * 4 * 8 * 8 * 4 * 9), "Conv [1, 4, 8, 8] x [8, 2, 3, 3]": (1, 8 * 3 * 3 * 2 * 9),
        "ConvTranspose [1, 8, 3, 3] x [8, 6, 2, 2]": (1, 8 * 3 * 3 * 6 * 4), "Gemm [1, 216] x [5, 216]": (1, 216 * 5),
    }  # fmt: skip
    total = sum(count for _, count in macs.values())
    assert {one.operator: (one.nodes, one.share) for one in found.rows} == {
        name: (nodes, pytest.approx(count / total)) for name, (nodes, count) in macs.items()
    }
    assert [one.share for one in found.rows] == sorted((one.share for one in found.rows), reverse=True)
    assert found.ratio == 3
    json.dumps(found.told(), allow_nan=False)
    assert len(timed) == 4
    for graph, _, feeds in timed:
        onnx.checker.check_model(graph, full_check=True)
        assert len(graph.graph.node) == 1
        assert {name: list(value.shape) for name, value in feeds.items()} == {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.graph.input
        }
    probe(model, torch.randn(1, 4, 8, 8), "twice", lambda graph, _: graph)
    assert len(timed) == 4, "what was timed in this process is not timed again"
    probe(model, torch.randn(1, 4, 8, 8), "another", lambda graph, _: graph)
    assert len(timed) == 8


def test_nine_tenths_of_the_work_are_enough(model, timed):
    found = probe(model, torch.randn(1, 4, 8, 8), "m", lambda graph, _: graph)
    assert len(found.rows) == 3
    assert sum(one.share for one in found.rows) >= 0.9 > sum(one.share for one in found.rows[:2])


def test_the_change_sees_the_ranges_and_nodes_that_are_kept_are_not_timed(model, timed):
    seen = []

    def change(graph, ranges):
        seen.append(ranges)
        return graph

    x = torch.randn(1, 4, 8, 8)
    found = probe(model, x, "m", change, before=change, kept=["b/Conv", "c/Conv", "d/ConvTranspose", "head/Gemm"], left=["Conv"])
    assert [(one.nodes, one.left) for one in found.rows] == [(1, True)]
    assert found.ratio == 1
    assert seen[0] == seen[1]
    assert seen[0]["input"] == (x.min().item(), x.max().item())
    with pytest.raises(MismatchError, match="none of"):
        probe(model, x, "m", change, only=["LSTM"])


def test_a_whole_graph_is_one_row(model, timed):
    seen = {}

    def change(graph, ranges):
        seen.update(ranges)
        return graph

    found = probe_whole(model, torch.randn(1, 4, 8, 8), "m", change, change)
    assert [(one.operator, one.nodes) for one in found.rows] == [("the whole graph", 1)]
    assert able()
    assert "input" in seen
    assert "1 of them" not in str(found.rows[0])


def test_signed_activations_are_refused_where_they_are_slower(tmp_path, monkeypatch):
    torch.manual_seed(0)
    source, inputs = tmp_path / "float.onnx", torch.randn(32, 4, 8, 8)
    Onnx().export(Net(), inputs[:2], source)
    times = iter([(1.0, 2.5), (1.0, 2.5), (1.0, 1.0)])
    monkeypatch.setattr(_gate, "_paired", lambda *_: next(times))
    with pytest.raises(MismatchError, match=r"int8 in place of uint8 .* 0\.40x.*activations: uint8, or force: true"):
        StaticInt8(examples=32, activations="int8").compress(source, tmp_path / "int8.onnx", inputs)
    assert not (tmp_path / "int8.onnx").exists()
    told = StaticInt8(examples=32, activations="int8", force=True).compress(source, tmp_path / "int8.onnx", inputs)
    assert told["notes"][0].startswith("forced: int8 in place of uint8")
    assert told["probe"][0]["predicted_ratio"] == pytest.approx(0.4)
    kinds = {t.data_type for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.name.endswith("zero_point")}
    assert TensorProto.UINT8 not in kinds
    assert StaticInt8(examples=32, activations="int8").compress(source, tmp_path / "int8.onnx", inputs)["notes"] == []


@pytest.mark.parametrize(("times", "passes"), [((2.0, 1.0), True), ((1.0, 1.2), False)])
def test_static_int8_for_latency_is_refused_where_it_is_slower(tmp_path, monkeypatch, times, passes):
    monkeypatch.setattr(_gate, "_paired", lambda *_: times)
    monkeypatch.setattr(_gate, "_TIMED", {})
    source, inputs = tmp_path / "float.onnx", torch.randn(32, 4, 8, 8)
    Onnx().export(Net(), inputs[:2], source)
    if passes:
        told = StaticInt8(examples=32, aim="latency").compress(source, tmp_path / "int8.onnx", inputs)
        assert told["probe"][0]["predicted_ratio"] == 2
    else:
        with pytest.raises(MismatchError, match=r"0\.83x.*aim: bytes"):
            StaticInt8(examples=32, aim="latency").compress(source, tmp_path / "int8.onnx", inputs)
    assert "probe" not in StaticInt8(examples=32).compress(source, tmp_path / "int8.onnx", inputs), "for its bytes nothing is timed"


def test_half_of_zeros_do_not_speed_a_dense_product():
    """The real machine: zeros are multiplied like other numbers. A ratio of 1 is expected; the bounds are for a busy machine."""
    found = dense_zeros(256, 256, examples=8)
    assert 0.5 < found.ratio < 2
    assert found.rows[0].operator == "MatMul [8, 256] x [256, 256]"
    with pytest.raises(MismatchError, match="50% zeros in a dense product would not make it faster"):
        refuse(Probe(found.method, [row(1.0, 1.0)]), "it", "prune whole rows")


def test_half_of_the_weights_are_zero(monkeypatch):
    seen = {}

    def paired(first, second, feeds, seconds=0.0):
        seen.update(dense=first, sparse=second)
        return 1.0, 1.0

    monkeypatch.setattr(_gate, "_paired", paired)
    monkeypatch.setattr(_gate, "_TIMED", {})
    dense_zeros(64, 32, share=0.75)
    dense, sparse = (numpy_helper.to_array(onnx.load_from_string(seen[key]).graph.initializer[0]) for key in ("dense", "sparse"))
    assert (dense != 0).all()
    assert (sparse == 0).mean() == pytest.approx(0.75, abs=0.03)
    assert (sparse[sparse != 0] == dense[sparse != 0]).all()


def test_the_clock_knows_more_work_from_less():
    """A product of 50 times the size beside a small one."""

    def product(size):
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, wide]) for name, wide in (("x", 256), ("y", size)))
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(np.ones((256, size), np.float32), "w")]
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()

    before, after = _gate._paired(product(1600), product(32), {"x": np.ones((64, 256), np.float32)})
    assert before > 3 * after > 0


@pytest.mark.skipif(sys.platform != "linux", reason="processors are pinned on Linux alone")
def test_the_process_may_use_all_its_processors_again():
    allowed = os.sched_getaffinity(0)
    with _gate._pinned():
        assert os.sched_getaffinity(0) == {max(allowed)}
    assert os.sched_getaffinity(0) == allowed
    assert math.isfinite(_gate._slot(type("Session", (), {"run": lambda *_: None})(), {}, 2))
