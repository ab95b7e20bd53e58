import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from limbeck.bridges.onnx_runtime import run
from limbeck.compress.quantize import _gate
from limbeck.compress.quantize.dynamic_int8 import DynamicInt8
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.lookup import check_options, find
from limbeck.export.onnx import Onnx


class Encoder(nn.Module):
    """One block of attention over patches that a convolution made, in the open."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, 2)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + (self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5).softmax(-1) @ self.value(x)
        return self.head((x + self.mlp(x)).mean(1))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.next = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.next(self.conv(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("float"), {}
    for kind in (Encoder, Convolutions):
        torch.manual_seed(0)
        found[kind.__name__] = folder / f"{kind.__name__}.onnx"
        Onnx().export(kind(), torch.randn(2, 1, 8, 8), found[kind.__name__])
    return found


@pytest.fixture
def clock(monkeypatch):
    """Convolutions take eight times as long, products half as long: what such machines measure."""

    def paired(first, second, feeds):
        return (1.0, 8.0) if any(node.op_type == "Conv" for node in onnx.load_from_string(first).graph.node) else (1.0, 0.5)

    monkeypatch.setattr(_gate, "_paired", paired)
    monkeypatch.setattr(_gate, "_TIMED", {})


X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def test_a_transformer_keeps_its_answers(files, clock, tmp_path):
    told = DynamicInt8().compress(files["Encoder"], tmp_path / "int8.onnx", X)
    reference, found = run(files["Encoder"], X), run(tmp_path / "int8.onnx", X)
    assert (found - reference).square().mean() < 1e-3 * reference.square().mean()
    assert (found != reference).any()
    json.dumps(told, allow_nan=False)
    assert told["quantized"] == ["query/MatMul", "key/MatMul", "value/MatMul", "mlp.0/MatMul", "mlp.2/MatMul", "head/Gemm"]
    assert {entry["op"]: entry["why"] for entry in told["left_float"]} == {
        "Conv": "Conv is left float by dynamic INT8", "MatMul": "it multiplies two activations",
    }  # fmt: skip
    assert told["file_bytes"] == (tmp_path / "int8.onnx").stat().st_size < 0.6 * told["source_bytes"]
    assert told["probe"][0]["predicted_ratio"] > 1.05
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 6
    assert kinds.count("Conv") == 1


def test_one_layer_equals_the_arithmetic(clock, tmp_path):
    """Each input's own range: S_x (q_x - Z_x) S_w q_w + b, by numpy in float64."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(64, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 64), ("y", 8)))
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="only/Gemm")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")])
    source = tmp_path / "float.onnx"
    source.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    DynamicInt8().compress(source, tmp_path / "int8.onnx", torch.zeros(1, 64))
    step = np.abs(weight).max(0) / 127
    back = np.clip(np.round(weight / step), -127, 127) * step
    for size in (0.1, 1, 30):
        inputs = (rng.uniform(-1, 3, (5, 64)) * size).astype(np.float32)
        low, high = min(inputs.min(), 0), max(inputs.max(), 0)
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        rounded = (np.clip(np.round(inputs / scale) + zero, 0, 255) - zero) * scale
        expected = rounded.astype(np.float64) @ back + bias
        np.testing.assert_allclose(run(tmp_path / "int8.onnx", torch.from_numpy(inputs)).numpy(), expected, atol=0.01 * np.abs(expected).max())


def test_convolutions_are_refused_with_figures_and_forced_only(files, clock, tmp_path):
    with pytest.raises(
        MismatchError, match=r"1\.00x.*Conv \[1, 32, 8, 8\] x \[32, 32, 3, 3\].*1 ms, 8 ms after \(0\.12x\), and so left.*static_int8.*force: true"
    ):
        DynamicInt8().compress(files["Convolutions"], tmp_path / "int8.onnx", X)
    with pytest.raises(MismatchError, match=r"0\.12x"):
        DynamicInt8(convolutions=True).compress(files["Convolutions"], tmp_path / "int8.onnx", X)
    assert not (tmp_path / "int8.onnx").exists()
    told = DynamicInt8(force=True).compress(files["Convolutions"], tmp_path / "int8.onnx", X)
    assert told["quantized"] == ["head/Gemm"]
    assert told["notes"][0].startswith("forced: dynamic INT8 would not make Convolutions.onnx faster")
    told = DynamicInt8(force=True, convolutions=True).compress(files["Convolutions"], tmp_path / "int8.onnx", X)
    assert told["quantized"] == ["conv/Conv", "next/Conv", "head/Gemm"]
    reference = run(files["Convolutions"], X)
    assert (run(tmp_path / "int8.onnx", X) - reference).square().mean() < 1e-2 * reference.square().mean()
    assert [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node].count("ConvInteger") == 2


def test_this_machine_finds_dynamic_convolutions_slower(files, tmp_path):
    """The real clock: on every machine that was tried they take 4 to 10 times as long."""
    with pytest.raises(MismatchError, match=r"dynamic INT8 would not make Convolutions\.onnx faster on this machine"):
        DynamicInt8(convolutions=True).compress(files["Convolutions"], tmp_path / "int8.onnx", X)


def test_products_of_stacked_weights_run(clock, tmp_path):
    rng = np.random.default_rng(0)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["N", 5, 2, 6]), ("y", ["N", 5, 2, 4])))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="stacked/MatMul"), helper.make_node("MatMul", ["h", "v"], ["y"], name="plain/MatMul")]
    weights = {"w": rng.normal(size=(5, 6, 7)).astype(np.float32), "v": rng.normal(size=(7, 4)).astype(np.float32)}
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    source, inputs = tmp_path / "float.onnx", torch.randn(16, 5, 2, 6)
    source.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    told = DynamicInt8(force=True).compress(source, tmp_path / "int8.onnx", inputs)
    assert told["quantized"] == ["plain/MatMul"]
    assert "no scales per channel of weights [5, 6, 7]" in told["left_float"][0]["why"]
    reference = run(source, inputs)
    assert (run(tmp_path / "int8.onnx", inputs) - reference).square().mean() < 1e-3 * reference.square().mean()


def test_another_process_writes_the_same_bytes_and_prints_nothing(files, clock, tmp_path):
    DynamicInt8().compress(files["Encoder"], tmp_path / "here.onnx", X)
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom limbeck.compress.quantize.dynamic_int8 import DynamicInt8\n"
        "DynamicInt8(force=True).compress(Path(sys.argv[1]), Path('there.onnx'), torch.randn(1, 1, 8, 8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(files["Encoder"])],
        cwd=tmp_path, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()


def test_layers_are_kept_and_seven_bits_are_seven(files, clock, tmp_path):
    told = DynamicInt8(keep_float=["mlp", "head"], reduce_range=True, per_channel=False).compress(files["Encoder"], tmp_path / "int8.onnx", X)
    assert told["quantized"] == ["query/MatMul", "key/MatMul", "value/MatMul"]
    assert {entry["node"] for entry in told["left_float"] if entry["why"] == "kept by keep_float"} == {"mlp.0/MatMul", "mlp.2/MatMul", "head/Gemm"}
    weights = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(weights) == 3
    assert max(np.abs(w.astype(int)).max() for w in weights) <= 64
    assert told["weights"] == "int8, 7 bits used, one scale per tensor"


def test_bad_files_inputs_and_options_are_refused(files, clock, tmp_path):
    source, path = files["Encoder"], tmp_path / "again.onnx"
    DynamicInt8().compress(source, tmp_path / "int8.onnx", X)
    with pytest.raises(MismatchError, match="quantized already"):
        DynamicInt8().compress(tmp_path / "int8.onnx", path, X)
    with pytest.raises(DataError, match="one input"):
        DynamicInt8().compress(source, path, X[:0])
    with pytest.raises(ArtifactError, match=r"none\.onnx"):
        DynamicInt8().compress(tmp_path / "none.onnx", path, X)
    with pytest.raises(RecipeError, match="did you mean 'head'"):
        DynamicInt8(keep_float=["haed"]).compress(source, path, X)
    with pytest.raises(MismatchError, match=r"nothing to quantize dynamically: Conv is left float.*; it multiplies two.*; kept by keep_float"):
        DynamicInt8(keep_float=["query", "key", "value", "mlp", "head"]).compress(source, path, X)
    assert not path.exists()
    assert find("compress", "dynamic_int8") is DynamicInt8
    assert set(check_options(DynamicInt8, {}, "dynamic_int8")) == {"per_channel", "reduce_range", "keep_float", "convolutions", "force"}
