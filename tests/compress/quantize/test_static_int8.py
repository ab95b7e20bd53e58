import json
import logging
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from limbeck.bridges.onnx_runtime import run
from limbeck.compress.quantize.static_int8 import StaticInt8
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.lookup import check_options, find
from limbeck.export import parity
from limbeck.export.onnx import Onnx


class Net(nn.Module):
    """A small residual CNN for 8x8 images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.same = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.same(x))
        return self.head(self.down(x).mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.data))
    images = torch.tensor(found.data[order], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return images, torch.tensor(found.target[order])


@pytest.fixture(scope="module")
def float_file(digits, tmp_path_factory):
    """A CNN trained on 1,200 digits for a second or two, exported."""
    images, labels = digits[0][:1200], digits[1][:1200]
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12 * 12)
    for _ in range(12):
        for batch in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    Onnx().export(model, images[:2], path)
    return path


@pytest.fixture(scope="module")
def quantized(float_file, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    told = StaticInt8().compress(float_file, path, digits[0][:1200])
    return path, told


def test_it_agrees_with_the_float_file_on_real_digits(float_file, quantized, digits):
    images, labels = digits
    reference = run(float_file, images)
    assert (reference.argmax(1) == labels)[1200:].float().mean() > 0.95, "the oracle is no trained model"
    found = parity(reference, run(quantized[0], images), quantized=True)
    found.check()
    assert found.agreement >= 0.995
    assert found.sqnr_db >= 30


def test_weights_are_int8_one_scale_per_channel_and_biases_int32(float_file, quantized):
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(float_file).graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(quantized[0]).graph.initializer}
    weights = [name for name in before if name.endswith(".weight")]
    assert len(weights) == 4
    for name in weights:
        stored, scale, zero = (after[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        assert name not in after
        assert stored.dtype == np.int8
        assert scale.shape == (len(before[name]),)
        assert not zero.any()
        largest = np.abs(before[name]).reshape(len(scale), -1).max(1)
        np.testing.assert_allclose(scale, largest / 127, rtol=0.01)
        back = stored * scale.reshape(-1, *[1] * (stored.ndim - 1))
        assert np.abs(back - before[name]).max() <= scale.max() / 2 * 1.0001
    biases = [value for name, value in after.items() if name.endswith("bias_quantized")]
    assert {value.dtype for value in biases} == {np.dtype("int32")}
    assert sum(value.size for value in after.values() if value.dtype == np.float32) < 200, "only scales are float"


def test_onnxruntime_runs_it_with_int8_kernels(quantized, tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(quantized[0]), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QGemm") == 1
    assert kinds.count("QLinearAdd") == 1
    assert not {"Conv", "Gemm", "Add", "Relu"} & set(kinds)


def test_the_logits_are_not_rounded(quantized, digits):
    graph = onnx.load(quantized[0]).graph
    assert next(node.op_type for node in graph.node if "logits" in node.output) == "Gemm"
    assert len(run(quantized[0], digits[0][:200]).unique()) > 1900


def test_what_was_decided_is_told_of_every_node(float_file, quantized):
    path, told = quantized
    json.dumps(told, allow_nan=False)
    assert told["quantized"] == ["stem.0/Conv", "same.0/Conv", "Add", "down.0/MaxPool", "down.1/Conv", "head/Gemm"]
    assert told["absorbed"] == ["stem.2/Relu", "Relu", "down.3/Relu"]
    assert [(entry["op"], entry["why"]) for entry in told["left_float"]] == [("ReduceMean", "onnxruntime has no INT8 kernel for ReduceMean")]
    assert told["calibration"] == "minmax"
    assert told["calibration_examples"] == 256
    assert told["weights"] == "int8, one scale per channel"
    assert told["notes"] == []
    assert (told["source_bytes"], told["file_bytes"]) == (float_file.stat().st_size, path.stat().st_size)


def test_another_process_writes_the_same_bytes_and_prints_nothing(float_file, quantized, digits, tmp_path):
    torch.save(digits[0][:1200], tmp_path / "images.pt")
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom limbeck.compress.quantize.static_int8 import StaticInt8\n"
        "images = torch.load('images.pt', weights_only=True)\n"
        "StaticInt8(calibration='percentile', percentile=99.0).compress(Path(sys.argv[1]), Path('percentile.onnx'), images)\n"
        "StaticInt8().compress(Path(sys.argv[1]), Path('minmax.onnx'), images)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(float_file)],
        cwd=tmp_path, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "minmax.onnx").read_bytes() == quantized[0].read_bytes()
    assert (tmp_path / "percentile.onnx").read_bytes() != quantized[0].read_bytes()
    assert {path.name for path in float_file.parent.iterdir()} == {"model.onnx"}, "nothing is left beside the source"


def one_layer(path, weight, bias):
    """`x [N, K] @ weight + bias`, exported by hand."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", weight.shape[0]), ("y", weight.shape[1])))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="only/Gemm")],
        "g",
        [x],
        [y],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return path


def test_one_layer_equals_the_arithmetic_of_the_paper(tmp_path):
    """r = S (q - Z), by numpy in float64."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(16, 6)).astype(np.float32) * np.float32([1, 10, 0.1, 2, 3, 4]), rng.normal(size=6).astype(np.float32)
    seen = torch.tensor(rng.uniform(-1, 3, size=(64, 16)), dtype=torch.float32)
    StaticInt8(examples=64).compress(one_layer(tmp_path / "float.onnx", weight, bias), tmp_path / "int8.onnx", seen)

    low, high = float(seen.min()), float(seen.max())
    scale = (high - low) / 255
    zero = round(-low / scale)
    inputs = torch.tensor(rng.uniform(-2, 4, size=(50, 16)), dtype=torch.float32)  # some beyond what calibration saw
    x = (np.clip(np.round(inputs.numpy() / np.float32(scale)) + zero, 0, 255) - zero) * scale
    step = np.abs(weight).max(0) / 127
    expected = x @ (np.clip(np.round(weight / step), -127, 127) * step) + np.round(bias / (step * scale)) * step * scale
    found = run(tmp_path / "int8.onnx", inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_allclose(np.median(np.abs(found - expected)), 0, atol=1e-4 * np.abs(expected).max())


def test_one_scale_for_a_whole_weight_is_worse_where_channels_differ(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 6)).astype(np.float32) * np.float32([1, 100, 0.1, 2, 3, 4])
    source = one_layer(tmp_path / "float.onnx", weight, np.zeros(6, np.float32))
    seen = torch.tensor(rng.normal(size=(256, 16)), dtype=torch.float32)
    wrong = {}
    for each in (True, False):
        StaticInt8(per_channel=each).compress(source, tmp_path / "int8.onnx", seen)
        wrong[each] = (run(tmp_path / "int8.onnx", seen) - run(source, seen))[:, 2].abs().mean().item()
    assert wrong[True] < wrong[False] / 10


def test_a_reduced_range_uses_seven_bits(float_file, digits, tmp_path):
    told = StaticInt8(reduce_range=True).compress(float_file, tmp_path / "int8.onnx", digits[0][:300])
    weights = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.name.endswith("weight_quantized")]
    assert len(weights) == 4
    assert max(np.abs(w.astype(int)).max() for w in weights) <= 64
    assert "7 bits" in told["weights"]


@pytest.mark.parametrize(
    ("keep", "nodes"), [(["head"], {"head/Gemm"}), (["stem"], {"stem.0/Conv", "stem.2/Relu"}), (["Add", "down.1/Conv"], {"Add", "down.1/Conv"})]
)
def test_layers_can_be_kept_float(float_file, digits, tmp_path, keep, nodes):
    told = StaticInt8(keep_float=keep).compress(float_file, tmp_path / "int8.onnx", digits[0][:300])
    assert {entry["node"] for entry in told["left_float"] if entry["why"] == "kept by keep_float"} == nodes
    assert nodes.isdisjoint(told["quantized"])
    floats = {t.name for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.data_type == TensorProto.FLOAT}
    assert ("head.weight" in floats) == (keep == ["head"])
    parity(run(float_file, digits[0][:300]), run(tmp_path / "int8.onnx", digits[0][:300]), quantized=True).check()


def test_a_large_layer_takes_a_quarter_of_the_bytes(tmp_path):
    rng = np.random.default_rng(0)
    source = one_layer(tmp_path / "float.onnx", rng.normal(size=(256, 256)).astype(np.float32), np.zeros(256, np.float32))
    told = StaticInt8(examples=8).compress(source, tmp_path / "int8.onnx", torch.randn(8, 256))
    assert told["file_bytes"] < 0.28 * told["source_bytes"]


def test_histograms_take_any_number_of_examples(tmp_path):
    source = one_layer(tmp_path / "float.onnx", np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    for count in (37, 66):
        told = StaticInt8(calibration="percentile", examples=count).compress(source, tmp_path / "int8.onnx", torch.randn(66, 2))
        assert told["calibration_examples"] == count


def test_calibration_is_spread_over_what_is_given(tmp_path):
    source = one_layer(tmp_path / "float.onnx", np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    sorted_inputs = torch.linspace(0, 100, 1000).repeat(2, 1).t().contiguous()
    StaticInt8(examples=10).compress(source, tmp_path / "int8.onnx", sorted_inputs)
    scale = next(numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.name == "x_scale")
    assert scale * 255 == pytest.approx(90, abs=0.2)


@pytest.mark.parametrize("calibration", ["percentile", "entropy", "mse"])
def test_ranges_without_the_tail_help_where_one_input_was_wild(tmp_path, calibration):
    """One of 64,000 numbers is 300 times the others: 8 bits of all of it leave the rest two. Entropy cuts to an eighth at most, mse pays for the one."""
    rng = np.random.default_rng(0)
    source = one_layer(tmp_path / "float.onnx", rng.normal(size=(16, 6)).astype(np.float32), np.zeros(6, np.float32))
    seen = torch.tensor(rng.uniform(-1, 1, size=(4000, 16)), dtype=torch.float32)
    ordinary = seen[1:].clone()
    seen[0, 0] = 300.0
    wrong = {}
    for kind in ("minmax", calibration):
        told = StaticInt8(calibration=kind, examples=4000, **({"percentile": 99.9} if kind == "percentile" else {})).compress(
            source, tmp_path / "int8.onnx", seen
        )
        wrong[kind] = (run(tmp_path / "int8.onnx", ordinary) - run(source, ordinary)).square().mean().item()
        assert told["calibration"] == kind
        assert told.get("percentile") == (99.9 if kind == "percentile" else None)
    assert wrong[calibration] < wrong["minmax"] / {"percentile": 100, "entropy": 30, "mse": 1}[calibration]


class Masked(nn.Module):
    """Causal attention: scores that are masked are minus infinity."""

    def __init__(self):
        super().__init__()
        self.table, self.query, self.key, self.head = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        tokens = self.table(x)
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2)
        scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), float("-inf"))
        return self.head((scores.softmax(-1) @ tokens).mean(1))


def test_what_is_masked_by_infinity_stays_float(tmp_path):
    torch.manual_seed(0)
    inputs = torch.randint(0, 50, (64, 8))
    Onnx().export(Masked(), inputs[:2], tmp_path / "float.onnx")
    told = StaticInt8(examples=64, calibration="mse").compress(tmp_path / "float.onnx", tmp_path / "int8.onnx", inputs)
    assert {entry["op"] for entry in told["left_float"] if "not finite" in entry["why"]} == {"Where", "Softmax"}
    assert "query/MatMul" in told["quantized"]
    reference = run(tmp_path / "float.onnx", inputs)
    assert (run(tmp_path / "int8.onnx", inputs) - reference).square().mean() < 1e-2 * reference.square().mean()


@pytest.mark.parametrize("per_channel", [True, False])
def test_products_of_stacked_weights_run(tmp_path, per_channel):
    """onnxruntime's kernel takes one scale for such weights, and none for each channel."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(5, 6, 7)).astype(np.float32), "v": rng.normal(size=(7, 4)).astype(np.float32)}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["N", 5, 2, 6]), ("y", ["N", 5, 2, 4])))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="stacked/MatMul"), helper.make_node("MatMul", ["h", "v"], ["y"], name="plain/MatMul")]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    source, inputs = tmp_path / "float.onnx", torch.randn(16, 5, 2, 6)
    source.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    told = StaticInt8(examples=16, per_channel=per_channel).compress(source, tmp_path / "int8.onnx", inputs)
    assert ("stacked/MatMul" in told["quantized"]) == (not per_channel)
    assert any("no scales per channel of weights [5, 6, 7]" in entry["why"] for entry in told["left_float"]) == per_channel
    reference = run(source, inputs)
    assert (run(tmp_path / "int8.onnx", inputs) - reference).square().mean() < 1e-3 * reference.square().mean()


def test_a_file_that_grew_says_so(tmp_path):
    source = one_layer(tmp_path / "float.onnx", np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    told = StaticInt8(examples=8).compress(source, tmp_path / "int8.onnx", torch.randn(8, 2))
    assert told["notes"] == [
        f"the file takes {told['file_bytes']:,} bytes and the float file {told['source_bytes']:,}: the nodes that mark 8 bits outweigh the weights"
    ]


def test_nodes_without_names_are_named(tmp_path):
    source = one_layer(tmp_path / "float.onnx", np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    model = onnx.load(source)
    model.graph.node[0].name = ""
    onnx.save(model, source)
    assert StaticInt8(examples=8).compress(source, tmp_path / "int8.onnx", torch.randn(8, 2))["quantized"] == ["Gemm_0"]


def bad(kind):
    x = torch.rand(300, 1, 8, 8)
    if kind in ("nan", "inf"):
        x[5] = float(kind)
    return {"few": x[:255], "empty": x[:0], "flat": torch.tensor(1.0), "constant": torch.full_like(x, 0.5), "one": x[:1].expand(300, 1, 8, 8)}.get(kind, x)


@pytest.mark.parametrize(
    ("kind", "told"),
    [("few", "256 inputs.*255"), ("empty", "256 inputs.*0 was"), ("flat", "tensor"), ("constant", "the same"), ("one", "the same"),
     ("nan", "finite"), ("inf", "finite")],
)  # fmt: skip
def test_calibration_inputs_that_measure_nothing_are_refused(float_file, tmp_path, kind, told):
    with pytest.raises(DataError, match=told):
        StaticInt8(examples=256 if kind not in ("nan", "inf") else 300).compress(float_file, tmp_path / "int8.onnx", bad(kind))
    assert list(tmp_path.iterdir()) == []


def test_calibration_inputs_of_another_shape_are_refused(float_file, tmp_path):
    with pytest.raises(MismatchError, match=r"\[N, 1, 8, 8\].*\[256, 64\]"):
        StaticInt8().compress(float_file, tmp_path / "int8.onnx", torch.rand(256, 64))


def test_a_model_that_overflows_on_calibration_inputs_is_refused(tmp_path):
    source = one_layer(tmp_path / "float.onnx", np.full((2, 2), 3e38, np.float32), np.zeros(2, np.float32))
    with pytest.raises(DataError, match="not finite"):
        StaticInt8(examples=4).compress(source, tmp_path / "int8.onnx", torch.rand(4, 2) + 5)


def test_a_quantized_damaged_or_missing_source_is_refused(quantized, float_file, tmp_path):
    with pytest.raises(MismatchError, match="quantized already"):
        StaticInt8().compress(quantized[0], tmp_path / "int8.onnx", torch.rand(256, 1, 8, 8))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(float_file.read_bytes()[:1000])
    for path in (damaged, tmp_path / "none.onnx"):
        with pytest.raises(ArtifactError, match=path.name):
            StaticInt8().compress(path, tmp_path / "int8.onnx", torch.rand(256, 1, 8, 8))


def test_nothing_to_quantize_and_unknown_layers_are_refused(float_file, tmp_path):
    with pytest.raises(RecipeError, match="no layer 'haed'; did you mean 'head'"):
        StaticInt8(keep_float=["haed"]).compress(float_file, tmp_path / "int8.onnx", torch.rand(256, 1, 8, 8))
    with pytest.raises(MismatchError, match="nothing to quantize beside keep_float"):
        StaticInt8(keep_float=["stem", "same", "down", "head"]).compress(float_file, tmp_path / "int8.onnx", torch.rand(256, 1, 8, 8))


def test_a_remark_of_onnxruntime_is_told_and_not_printed(capfd):
    from limbeck.compress.quantize._qdq import remarks

    with remarks() as notes:
        print("Collecting tensor data and making histogram ...")
        logging.getLogger().warning("bias %s is odd", "b")
    assert notes == ["bias b is odd"]
    assert capfd.readouterr().out == ""


def test_it_is_found_by_name_and_its_options_are_checked():
    assert find("compress", "static_int8") is StaticInt8
    assert set(check_options(StaticInt8, {}, "static_int8")) == {
        "calibration", "percentile", "examples", "per_channel", "reduce_range", "activations", "keep_float", "float_layers", "correct_bias", "aim", "force",
    }  # fmt: skip
    with pytest.raises(RecipeError, match="calibration"):
        check_options(StaticInt8, {"calibration": "entropyy"}, "static_int8")
    for wrong, told in (
        ({"calibration": "entropyy"}, "did you mean 'entropy'"), ({"percentile": 99.0}, "calibration: percentile"), ({"activations": "int4"}, "activations"),
        ({"calibration": "percentile", "percentile": 40.0}, "above 50"), ({"aim": "speed"}, "choices are bytes, latency"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=told):
            StaticInt8(**wrong)
    with pytest.raises(RecipeError, match="examples"):
        StaticInt8(examples=1)
