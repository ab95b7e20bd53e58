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
from limbeck.compress.quantize._bits import grouped
from limbeck.compress.quantize._calibration import open_plain
from limbeck.compress.quantize.weight_only import WeightOnly
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.lookup import check_options, find
from limbeck.export.onnx import Onnx


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr(_gate, "_paired", lambda *_: (1.0, 2.0))
    monkeypatch.setattr(_gate, "_TIMED", {})


def save(path, nodes, weights, x_shape, y_shape, kind=TensorProto.FLOAT):
    x, y = helper.make_tensor_value_info("x", kind, ["N", *x_shape]), helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *y_shape])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return path


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (4, 128), (8, 32), (8, 128)])
@pytest.mark.parametrize("inner", [256, 150])
def test_a_product_is_that_with_the_dequantized_weights(tmp_path, bits, block, inner):
    weight = drawn(inner, 40)
    source = save(tmp_path / "float.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="only/MatMul")], {"w": weight}, (3, inner), (3, 40))
    inputs = torch.from_numpy(drawn(6, 3, inner))
    told = WeightOnly(bits=bits, block_size=block).compress(source, tmp_path / "small.onnx", inputs)
    expected = inputs.double().numpy() @ grouped(weight.T, bits, block).weights().T.astype(np.float64)
    for found in (run(tmp_path / "small.onnx", inputs).numpy(), open_plain(onnx.load(tmp_path / "small.onnx")).run(None, {"x": inputs.numpy()})[0]):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert told["quantized"] == ["only/MatMul"]
    assert told["file_bytes"] == (tmp_path / "small.onnx").stat().st_size < told["source_bytes"]
    assert told["probe"][0]["predicted_ratio"] == 0.5
    assert "0.50 times as fast as the float file" in told["notes"][-1]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta", "biased"), [(1.0, 1.0, True), (0.5, 2.0, True), (2.0, 1.0, False), (1.0, 0.0, True)])
def test_a_gemm_becomes_a_product_and_an_addition(tmp_path, transposed, alpha, beta, biased):
    weight, bias = drawn(128, 24), drawn(24)
    weights = {"w": np.ascontiguousarray(weight.T) if transposed else weight, **({"b": bias} if biased else {})}
    node = helper.make_node("Gemm", ["x", "w", *(["b"] if biased else [])], ["y"], name="only/Gemm", transB=transposed, alpha=alpha, beta=beta)
    source = save(tmp_path / "float.onnx", [node], weights, (128,), (24,))
    inputs = torch.from_numpy(drawn(10, 128))
    told = WeightOnly(bits=8, block_size=32).compress(source, tmp_path / "small.onnx", inputs)
    back = grouped(alpha * weight.T, 8, 32).weights().T.astype(np.float64)
    expected = inputs.double().numpy() @ back + (beta * bias if biased else 0)
    np.testing.assert_allclose(run(tmp_path / "small.onnx", inputs).numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(run(tmp_path / "small.onnx", inputs).numpy(), run(source, inputs).numpy(), atol=0.3)
    assert told["quantized"] == ["only/Gemm"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions_are_stored_so_and_it_is_said(tmp_path, bits, kind):
    weight = drawn(20, 10, 3, 3) if kind == "Conv" else drawn(10, 20, 3, 3)  # 90 or 180 to a row: no multiple of 32
    node = helper.make_node(kind, ["x", "w", "b"], ["y"], name="only/Conv")
    source = save(tmp_path / "float.onnx", [node], {"w": weight, "b": drawn(20)}, (10, 6, 6), (20, 4 if kind == "Conv" else 8, 4 if kind == "Conv" else 8))
    inputs = torch.from_numpy(drawn(4, 10, 6, 6))
    told = WeightOnly(bits=bits, block_size=32).compress(source, tmp_path / "small.onnx", inputs)
    back = torch.from_numpy(grouped(weight.reshape(len(weight), -1), bits, 32).weights().reshape(weight.shape))
    op = nn.functional.conv2d if kind == "Conv" else nn.functional.conv_transpose2d
    torch.testing.assert_close(run(tmp_path / "small.onnx", inputs), op(inputs, back, torch.from_numpy(drawn(20))), atol=1e-3, rtol=1e-3)
    assert "1 are stored so, and made float at every run" in told["notes"][0]
    with pytest.raises(MismatchError, match="convolutions: false"):
        WeightOnly(convolutions=False).compress(source, tmp_path / "none.onnx", inputs)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [64, 40])
def test_rows_that_are_looked_up_are_read_from_their_groups(tmp_path, bits, width):
    table = drawn(50, width)
    node = helper.make_node("Gather", ["table", "x"], ["y"], name="tokens/Gather")
    source = save(tmp_path / "float.onnx", [node], {"table": table}, (7,), (7, width), TensorProto.INT64)
    ids = torch.randint(0, 50, (5, 7))
    told = WeightOnly(bits=bits, block_size=32).compress(source, tmp_path / "small.onnx", ids)
    back = torch.from_numpy(grouped(table, bits, 32).weights())
    torch.testing.assert_close(run(tmp_path / "small.onnx", ids), back[ids], atol=1e-6, rtol=1e-6)
    assert (told["quantized"], told["probe"]) == (["tokens/Gather"], [])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.a, self.b = nn.Linear(32 * 16, 256), nn.Linear(256, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2).flatten(1)
        return self.head(self.b(self.b(self.a(x).relu()).relu()).relu())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "model.onnx"
    torch.manual_seed(0)
    Onnx().export(Net(), torch.randn(2, 1, 8, 8), path)
    return path


def test_four_bits_take_half_the_bytes_of_eight_and_eight_a_quarter_of_float(exported, tmp_path):
    inputs = torch.randn(64, 1, 8, 8)
    size = {bits: WeightOnly(bits=bits, block_size=128).compress(exported, tmp_path / f"{bits}.onnx", inputs)["file_bytes"] for bits in (8, 4)}
    source = exported.stat().st_size
    assert size[8] < 0.28 * source
    assert size[4] < 0.54 * size[8]
    reference = run(exported, inputs)
    error = {bits: (run(tmp_path / f"{bits}.onnx", inputs) - reference).square().mean() / reference.square().mean() for bits in (8, 4)}
    assert error[8] < 1e-4
    assert error[8] * 50 < error[4] < 0.05
    tensors = {t.name: t for t in onnx.load(tmp_path / "4.onnx").graph.initializer}
    assert sum(name.endswith("codes") for name in tensors) == 4, "weights that two nodes share are stored once"
    assert not any(name.endswith("weight") for name in tensors)


def test_every_node_with_weights_is_accounted_for_and_layers_are_kept(exported, tmp_path):
    told = WeightOnly(keep_float=["conv", "a"]).compress(exported, tmp_path / "small.onnx", torch.randn(1, 1, 8, 8))
    assert told["quantized"] == ["b/Gemm", "b/Gemm_1", "head/Gemm"]
    assert told["left_float"] == [{"node": name, "op": op, "why": "kept by keep_float"} for name, op in (("conv/Conv", "Conv"), ("a/Gemm", "MatMul"))]
    assert told["weights"] == "4 bits, a scale and a zero point for every 64 of an output"
    assert "compute: int8 may be faster" in told["notes"][-1]


def test_products_may_compute_in_8_bits(exported, tmp_path):
    inputs = torch.randn(64, 1, 8, 8)
    told = WeightOnly(bits=8, compute="int8").compress(exported, tmp_path / "small.onnx", inputs)
    levels = {a.i for node in onnx.load(tmp_path / "small.onnx").graph.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {4}
    assert "rounded to int8" in told["activations"]
    reference = run(exported, inputs)
    assert (run(tmp_path / "small.onnx", inputs) - reference).square().mean() < 1e-3 * reference.square().mean()


def test_another_process_writes_the_same_bytes_and_prints_nothing(exported, tmp_path):
    WeightOnly().compress(exported, tmp_path / "here.onnx", torch.zeros(1, 1, 8, 8))
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom limbeck.compress.quantize.weight_only import WeightOnly\n"
        "WeightOnly().compress(Path(sys.argv[1]), Path('there.onnx'), torch.randn(1, 1, 8, 8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(exported)],
        cwd=tmp_path, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()


def test_weights_that_would_grow_stay_and_a_file_that_would_grow_is_refused(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="only/MatMul")
    tiny = save(tmp_path / "tiny.onnx", [node], {"w": drawn(6, 3)}, (6,), (3,))
    with pytest.raises(MismatchError, match=r"no weights to store in 4 bits: it would take 201 bytes, and 72 in float"):
        WeightOnly(block_size=128).compress(tiny, tmp_path / "small.onnx", torch.randn(1, 6))
    small = save(tmp_path / "few.onnx", [node], {"w": drawn(32, 1)}, (32,), (1,))
    with pytest.raises(MismatchError, match=r"few\.onnx with 4-bit weights takes [\d,]+ bytes, and the float file [\d,]+.*force: true"):
        WeightOnly(block_size=32).compress(small, tmp_path / "small.onnx", torch.randn(1, 32))
    assert not (tmp_path / "small.onnx").exists()
    told = WeightOnly(block_size=32, force=True).compress(small, tmp_path / "small.onnx", torch.randn(1, 32))
    assert told["notes"][0].startswith("forced: few.onnx with 4-bit weights takes")
    assert told["file_bytes"] > told["source_bytes"]


def test_bad_files_inputs_and_options_are_refused(exported, tmp_path):
    x = torch.randn(1, 1, 8, 8)
    WeightOnly().compress(exported, tmp_path / "small.onnx", x)
    with pytest.raises(MismatchError, match="quantized already"):
        WeightOnly().compress(tmp_path / "small.onnx", tmp_path / "again.onnx", x)
    with pytest.raises(DataError, match="one input"):
        WeightOnly().compress(exported, tmp_path / "again.onnx", x[:0])
    with pytest.raises(ArtifactError, match=r"none\.onnx"):
        WeightOnly().compress(tmp_path / "none.onnx", tmp_path / "again.onnx", x)
    with pytest.raises(RecipeError, match="did you mean 'head'"):
        WeightOnly(keep_float=["haed"]).compress(exported, tmp_path / "again.onnx", x)
    with pytest.raises(MismatchError, match="no weights to store in 4 bits: kept by keep_float"):
        WeightOnly(keep_float=["conv", "a", "b", "head"]).compress(exported, tmp_path / "again.onnx", x)
    broken = drawn(64, 64)
    broken[3, 3] = np.nan
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="only/MatMul")
    with pytest.raises(MismatchError, match="only/MatMul are not all finite"):
        WeightOnly().compress(save(tmp_path / "nan.onnx", [node], {"w": broken}, (64,), (64,)), tmp_path / "again.onnx", torch.randn(1, 64))
    assert not (tmp_path / "again.onnx").exists()
    for wrong in ({"bits": 3}, {"block_size": 48}, {"compute": "int4"}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            WeightOnly(**wrong)
    assert find("compress", "weight_only") is WeightOnly
    assert set(check_options(WeightOnly, {}, "weight_only")) == {"bits", "block_size", "compute", "convolutions", "keep_float", "force"}
