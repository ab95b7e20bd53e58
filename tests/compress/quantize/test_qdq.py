import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from limbeck.bridges.onnx_runtime import run, session
from limbeck.compress.quantize._qdq import drop_unread, float_outputs, name_nodes, nodes_of
from limbeck.core.errors import RecipeError


def graph(*, also: bool = False):
    """relu(x), quantized to steps of 1 and dequantized into `y`; with `also`, a second output -relu(x) reads what is quantized."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="body.act/Relu"),
        helper.make_node("QuantizeLinear", ["r", "one", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["y"], name="d"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])]
    if also:
        nodes.append(helper.make_node("Neg", ["r"], ["z"], name="Neg"))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2]))
    constants = [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]), helper.make_tensor("zero", TensorProto.UINT8, [], [0])]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])], outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("also", [False, True])
def test_the_last_rounding_is_taken_off(also):
    x = torch.tensor([[0.3, -1.0], [1.6, 2.2]])
    model = graph(also=also)
    assert torch.equal(run(session(model.SerializeToString()), x), x.relu().round())
    float_outputs(model.graph)
    onnx.checker.check_model(model, full_check=True)
    opened = session(model.SerializeToString())
    assert torch.equal(run(opened, x), x.relu())
    assert [tensor.name for tensor in model.graph.initializer] == []
    if also:
        assert torch.equal(torch.tensor(opened.run(["z"], {"x": x.numpy()})[0]), -x.relu())


def test_a_graph_that_does_not_end_in_a_rounding_stays_as_it_is():
    model = graph()
    float_outputs(model.graph)
    once = model.SerializeToString()
    float_outputs(model.graph)
    assert model.SerializeToString() == once


def test_rounding_the_input_itself_stays():
    model = graph()
    del model.graph.node[0]
    model.graph.node[0].input[0] = "x"
    model.graph.initializer.append(numpy_helper.from_array(torch.zeros(1).numpy(), "unused"))
    float_outputs(model.graph)
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "DequantizeLinear"]
    assert [tensor.name for tensor in model.graph.initializer] == ["one", "zero"]


@pytest.mark.parametrize("layer", ["body", "body.act", "body.act/Relu"])
def test_a_layer_means_its_nodes_and_those_within(layer):
    assert nodes_of(graph().graph, [layer, layer]) == ["body.act/Relu"]


def test_a_layer_is_not_its_prefix():
    with pytest.raises(RecipeError, match=r"no layer 'bod'.*body\.act"):
        nodes_of(graph().graph, ["bod"])


def test_constants_that_only_a_branch_reads_stay():
    model = graph()
    branch = helper.make_graph([helper.make_node("Identity", ["inner"], ["z"])], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])
    model.graph.node.append(helper.make_node("If", ["so"], ["w"], name="If", then_branch=branch, else_branch=branch))
    for name in ("inner", "so", "nobody"):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.BOOL if name == "so" else TensorProto.FLOAT, [1], [1]))
    drop_unread(model.graph)
    assert [tensor.name for tensor in model.graph.initializer] == ["one", "zero", "inner", "so"]


def test_nodes_without_a_name_get_one():
    model = graph()
    model.graph.node[0].name = ""
    name_nodes(model.graph)
    assert [node.name for node in model.graph.node] == ["Relu_0", "q", "d"]
