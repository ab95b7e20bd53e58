"""Grown networks as an ONNX file of plain operators.

Shapes: N rows, F inputs, C networks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.bridges.onnx import canonical_bytes

from ._network import Network

__all__ = ["graph_of"]

_OPSET, _IR = 17, 8
_FLOAT, _DOUBLE = 1, 11
"""Types as ONNX numbers them."""


class _Graph:
    """Nodes and constants as they come."""

    def __init__(self) -> None:
        self.nodes = list[Any]()
        self.initial = list[Any]()

    def constant(self, value: Any, kind: type = np.float64) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.initial)}"
        self.initial.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def network(self, network: Network) -> str:
        """Rows `[N, F]` to the network's answers `[N, 1]`."""
        rows = self.add("Sub", self.add("Cast", "rows", to=_DOUBLE), self.constant(network.center))
        nodes = self.add("Div", rows, self.constant(network.scale))
        if not network.layers:
            silent = np.zeros((len(network.center), 1))
            return self.add("Add", self.add("MatMul", nodes, self.constant(silent)), self.constant(network.mean))
        said = ""
        for layer in network.layers:
            a, b = (self.add("Gather", nodes, self.constant(layer.pairs[:, side], np.int64), axis=1) for side in (0, 1))
            c = [self.constant(layer.coefficients[:, term]) for term in range(6)]
            inner = self.add("Add", self.add("Add", self.add("Mul", a, c[3]), self.add("Mul", b, c[5])), c[1])  # c1 + c3 a + c5 b
            outer = self.add("Add", self.add("Mul", b, c[4]), c[2])  # c2 + c4 b
            said = self.add("Add", self.add("Add", self.add("Mul", a, inner), self.add("Mul", b, outer)), c[0])
            if np.isfinite(network.bounds).all():
                said = self.add("Clip", said, *(self.constant(bound) for bound in network.bounds))
            nodes = self.add("Concat", nodes, said, axis=1)
        return self.add("Add", self.add("Mul", said, self.constant(network.deviation)), self.constant(network.mean))


def graph_of(networks: Sequence[Network], softmax: tuple[float, npt.NDArray[np.float64]] | None = None) -> bytes:
    """Return an ONNX model, from float32 to float32 and computed in float64, for terms cancel: from `rows [N, F]` to the one network's `prediction [N, 1]`, or,
    where `softmax` gives slope and offsets, to `probabilities [N, C]`, the softmax of `slope * scores + offsets`, a single network being the score of the
    second of two classes.
    """
    from onnx import TensorProto, helper

    graph, features = _Graph(), len(networks[0].center)
    said = [graph.network(network) for network in networks]
    if softmax is None:
        name, wide = "prediction", 1
        graph.add("Cast", said[0], to=_FLOAT, output=name)
    else:
        slope, offsets = softmax
        name, wide = "probabilities", len(offsets)
        scores = graph.add("Concat", *said, axis=1) if len(said) > 1 else graph.add("MatMul", said[0], graph.constant([[0.0, 1.0]]))
        scaled = graph.add("Add", graph.add("Mul", scores, graph.constant(slope)), graph.constant(offsets))
        graph.add("Cast", graph.add("Softmax", scaled, axis=1), to=_FLOAT, output=name)
    made = helper.make_graph(
        graph.nodes, "gmdh", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", wide])], graph.initial,
    )  # fmt: skip
    return canonical_bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR))
