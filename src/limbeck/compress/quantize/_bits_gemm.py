"""A Gemm as the product and the addition that it is: alpha A B + beta C, B transposed where transB says so."""

from typing import TYPE_CHECKING

import numpy as np

from ._qdq import drop_unread

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["split_gemms"]


def split_gemms(graph: "GraphProto") -> None:
    """Write every Gemm whose weights are constant as a MatMul of the same name, and an Add where it has a bias, in place; one that transposes A stays."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        told = {attribute.name: attribute for attribute in node.attribute} if node.op_type == "Gemm" else {}
        alpha, beta = (told[name].f if name in told else 1.0 for name in ("alpha", "beta"))
        scaled = beta != 1 and len(node.input) > 2 and node.input[2] not in constants
        if node.op_type != "Gemm" or node.input[1] not in constants or ("transA" in told and told["transA"].i) or scaled:
            nodes.append(node)
            continue
        turned = "transB" in told and bool(told["transB"].i)
        made = f"{node.input[1]}.{'turned' if turned else 'straight'}{'' if alpha == 1 else f'.{alpha!r}'}"
        if made not in constants:  # one that two nodes share is made once
            weight = numpy_helper.to_array(constants[node.input[1]])
            constants[made] = numpy_helper.from_array(np.ascontiguousarray(np.float32(alpha) * (weight.T if turned else weight), weight.dtype), made)
            graph.initializer.append(constants[made])
        nodes += _pair(graph, node, made, beta, {name: numpy_helper.to_array(constants[name]) for name in node.input[2:3] if name in constants})
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)


def _pair(graph: "GraphProto", node: "NodeProto", made: str, beta: float, bias: dict[str, np.ndarray]) -> "list[NodeProto]":
    from onnx import helper, numpy_helper

    read = list(node.input)
    if len(read) < 3 or not read[2] or not beta:
        return [helper.make_node("MatMul", [read[0], made], list(node.output), name=node.name)]
    if beta != 1:
        graph.initializer.append(numpy_helper.from_array((np.float32(beta) * bias[read[2]]).astype(bias[read[2]].dtype), f"{node.name}.bias"))
        read[2] = f"{node.name}.bias"
    between = f"{node.name}.sum"
    return [
        helper.make_node("MatMul", [read[0], made], [between], name=node.name),
        helper.make_node("Add", [between, read[2]], list(node.output), name=f"{node.name}.add"),
    ]
