import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from limbeck.bridges.onnx_runtime import run
from limbeck.compress.quantize._calibration_bias import channel_means
from limbeck.compress.quantize.static_int8 import StaticInt8


def save(path, nodes, weights, x_shape, y_shape):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in (("x", x_shape), ("y", y_shape)))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return path


def file(path, kind):
    """A layer, and one after it, whose weights share one bias; without a scale per channel their rounding is coarse enough to shift the means."""
    rng = np.random.default_rng(0)
    if kind == "conv":
        weights = {"v": rng.normal(size=(6, 4, 3, 3)), "w": rng.normal(size=(6, 6, 1, 1)), "b": rng.normal(size=6) / 10}
        nodes = [helper.make_node("Conv", ["x", "v"], ["h"], name="first/Conv"), helper.make_node("Conv", ["h", "w", "b"], ["y"], name="second/Conv")]
        return save(path, nodes, weights, (4, 6, 6), (6, 4, 4))
    weights = {"v": rng.normal(size=(12, 12)), "w": rng.normal(size=(12, 12)), "b": rng.normal(size=12) / 10}
    weights["v"] *= np.geomspace(0.02, 1, 12)
    if kind == "gemm":
        nodes = [
            helper.make_node("Gemm", ["x", "v", "b"], ["h"], name="first/Gemm"),
            helper.make_node("Gemm", ["h", "w", "b"], ["y"], name="second/Gemm", transB=1),
        ]
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "v"], ["p"], name="first/MatMul"),
            helper.make_node("Add", ["b", "p"], ["h"], name="first/Add"),
            helper.make_node("MatMul", ["h", "w"], ["y"], name="second/MatMul"),
        ]
    return save(path, nodes, weights, (12,), (12,))


@pytest.mark.parametrize(
    ("kind", "done", "without"),
    [("gemm", ["first/Gemm", "second/Gemm"], []), ("conv", ["first/Conv", "second/Conv"], []), ("matmul", ["first/MatMul"], ["second/MatMul"])],
)
def test_the_mean_of_every_channel_comes_back(tmp_path, kind, done, without):
    source = file(tmp_path / "float.onnx", kind)
    inputs = torch.rand(128, 4, 6, 6) if kind == "conv" else torch.rand(128, 12)
    reference, shift = run(source, inputs), {}
    for corrected in (False, True):
        told = StaticInt8(examples=128, per_channel=False, correct_bias=corrected).compress(source, tmp_path / "int8.onnx", inputs)
        wrong = run(tmp_path / "int8.onnx", inputs) - reference
        shift[corrected] = wrong.movedim(1, -1).flatten(0, -2).mean(0).abs().max().item()
    assert (told["bias_corrected"], told["bias_not_corrected"]) == (done, without)
    assert shift[True] < shift[False] / (4 if not without else 1.2)


def test_the_float_file_is_left_as_it_is(tmp_path):
    source = file(tmp_path / "float.onnx", "gemm")
    before = source.read_bytes()
    StaticInt8(examples=64, correct_bias=True).compress(source, tmp_path / "int8.onnx", torch.rand(64, 12))
    assert source.read_bytes() == before


def test_means_are_over_examples_and_places():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 5]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    inputs = torch.randn(70, 3, 5)
    by_channel, by_last = channel_means(model, ["y", "y"], [1, -1], inputs)
    np.testing.assert_allclose(by_channel, inputs.relu().double().mean((0, 2)).numpy(), atol=1e-9)
    np.testing.assert_allclose(by_last, inputs.relu().double().mean((0, 1)).numpy(), atol=1e-9)
