import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from limbeck.bridges.onnx_runtime import run
from limbeck.compress.quantize._sensitivity import layers, most_sensitive, sqnr_db
from limbeck.compress.quantize.static_int8 import StaticInt8
from limbeck.core.errors import RecipeError


def chain(path):
    """Three layers of 8 units; what `wild` gives has one unit a thousand times the others, so that 8 bits for all of it lose the others, which `last` reads."""
    rng = np.random.default_rng(0)
    scale = np.ones(8, np.float32)
    scale[0] = 1000
    weights = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("calm", "wild", "last")}
    weights["wild"] *= scale
    weights["last"] /= scale[:, None]
    nodes, before = [], "x"
    for name in weights:
        after = "y" if name == "last" else f"{name}.out"
        nodes += [helper.make_node("MatMul", [before, name], [after], name=f"{name}/MatMul")]
        before = after
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return path


def test_the_layers_that_8_bits_hurt_most_stay_float(tmp_path):
    source, inputs = chain(tmp_path / "float.onnx"), torch.randn(64, 8)
    reference = run(source, inputs)
    quality = {}
    for count in (0, 1, 2):
        told = StaticInt8(examples=64, float_layers=count).compress(source, tmp_path / "int8.onnx", inputs)
        quality[count] = sqnr_db(reference, run(tmp_path / "int8.onnx", inputs))
        left = {row["node"] for row in told["left_float"] if "float_layers" in row["why"]}
        assert left == {node for row in told.get("sensitivity", ()) if row["float"] for node in row["nodes"]}
        assert len(left) == count
    assert quality[2] > quality[0] + 15
    rows = told["sensitivity"]
    assert [row["sqnr_db"] for row in rows] == sorted(row["sqnr_db"] for row in rows)
    assert [row["layer"] for row in rows if row["float"]] == [row["layer"] for row in rows[:2]]
    assert rows[-1]["layer"] == "calm"
    assert rows[-1]["sqnr_db"] > rows[0]["sqnr_db"] + 15


def test_a_layer_alone_is_what_its_row_says(tmp_path):
    source, inputs = chain(tmp_path / "float.onnx"), torch.randn(64, 8)
    rows = StaticInt8(examples=64, float_layers=1).compress(source, tmp_path / "int8.onnx", inputs)["sensitivity"]
    StaticInt8(examples=64, keep_float=["wild", "last"]).compress(source, tmp_path / "calm.onnx", inputs)
    alone = sqnr_db(run(source, inputs), run(tmp_path / "calm.onnx", inputs))
    assert next(row["sqnr_db"] for row in rows if row["layer"] == "calm") == pytest.approx(alone, abs=1e-6)


def test_more_float_layers_than_there_are_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="float_layers is 3, and the file has 3 layers"):
        StaticInt8(examples=64, float_layers=3).compress(chain(tmp_path / "float.onnx"), tmp_path / "int8.onnx", torch.randn(64, 8))
    assert not (tmp_path / "int8.onnx").exists()
    with pytest.raises(RecipeError, match="float_layers must be 0 or more"):
        StaticInt8(float_layers=-1)
    with pytest.raises(RecipeError, match="leave one or more"):
        most_sensitive([{}], 1)


def test_a_layer_is_its_own_nodes_and_movers_are_none():
    nodes = [
        helper.make_node(kind, [], [], name=name)
        for kind, name in (("MatMul", "a/MatMul"), ("Add", "a/Add"), ("Reshape", "a/Reshape"), ("Conv", "a.b/Conv"), ("Mul", "Mul"), ("Gemm", "c/Gemm"))
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert layers(graph, {"a/MatMul", "a/Add", "a/Reshape", "a.b/Conv", "Mul"}) == {"a": ["a/MatMul", "a/Add"], "a.b": ["a.b/Conv"], "Mul": ["Mul"]}


def test_signal_over_noise():
    reference = torch.tensor([[3.0, 4.0]])
    assert sqnr_db(reference, reference) is None
    assert sqnr_db(reference, torch.tensor([[3.0, 4.5]])) == pytest.approx(10 * math.log10(25 / 0.25))
    assert sqnr_db(torch.zeros(2), torch.ones(2)) == -math.inf
