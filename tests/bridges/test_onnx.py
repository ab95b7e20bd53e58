import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from limbeck.bridges import onnx as ours
from limbeck.bridges.onnx_runtime import run, session
from limbeck.core.errors import ArtifactError, MismatchError


def model(noise: str = ""):
    """y = relu(x) if any x > 2 else x, with `noise` wherever ONNX has room for it."""
    branches = []
    for name, op in (("yes", "Relu"), ("no", "Identity")):
        node = helper.make_node(op, ["x"], [f"{name}_y"], name=name, doc_string=noise)
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None, doc_string=noise)
        branches.append(helper.make_graph([node], name, [], [out], doc_string=noise))
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], name="most", keepdims=0),
        helper.make_node("Greater", ["most", "two"], ["big"], name="big", doc_string=noise),
        helper.make_node("If", ["big"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3], doc_string=noise) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.float32(2), "two")], doc_string=noise)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name=noise, producer_version=noise, doc_string=noise)
    if noise:
        helper.set_model_props(made, {"folder": noise})
        for node in (*made.graph.node, *branches[0].node):
            node.metadata_props.add(key="stack_trace", value=noise)
        inner = made.graph.node[2].attribute[0].g
        inner.node[0].metadata_props.add(key="stack_trace", value=noise)
        made.graph.value_info.append(helper.make_tensor_value_info("big", TensorProto.BOOL, [], doc_string=noise))
        turned = list(made.graph.node[2].attribute)[::-1]
        del made.graph.node[2].attribute[:]
        made.graph.node[2].attribute.extend(turned)
    return made


def test_what_does_not_compute_leaves_no_trace():
    noisy = model("/home/somebody/project")
    assert b"somebody" in noisy.SerializeToString()
    data = ours.canonical_bytes(noisy)
    assert b"somebody" not in data
    assert data == ours.canonical_bytes(model("another")) == ours.canonical_bytes(model())
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)


def test_what_computes_is_kept():
    data = ours.canonical_bytes(model("noise"))
    for x in (torch.tensor([[-1.0, 0.0, 3.0]]), torch.tensor([[-1.0, 0.0, 1.0]])):
        assert torch.equal(run(session(data), x), x.relu() if x.max() > 2 else x)


def test_load_reads_what_was_written(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(ours.canonical_bytes(model()))
    assert [node.op_type for node in ours.load(file).graph.node] == ["ReduceMax", "Greater", "If"]


@pytest.mark.parametrize("data", [b"", b"text", b"\xff" * 99])
def test_load_refuses_what_is_no_model(tmp_path, data):
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx") as caught:
        ours.load(file)
    assert "\n" not in str(caught.value)


def test_load_refuses_half_a_file_a_folder_and_nothing(tmp_path):
    file = tmp_path / "model.onnx"
    data = ours.canonical_bytes(model())
    file.write_bytes(data[: len(data) // 2])
    for path in (file, tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(ArtifactError):
            ours.load(path)


def test_more_than_one_file_can_hold_is_refused(monkeypatch):
    monkeypatch.setattr(ours, "LIMIT", 10)
    with pytest.raises(MismatchError, match="10"):
        ours.canonical_bytes(model())
