"""Tree ensembles of scikit-learn as one ONNX graph: a file that holds no pickle, which onnxruntime computes.

Shapes: N rows, F features, C classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import MismatchError

__all__ = ["tree_graph"]

_OPSET, _ML_OPSET, _IR = 17, 3, 8


class _Tree(NamedTuple):
    """One tree: feature, threshold and children of each node (left where `x <= threshold`), which nodes are leaves, and what a leaf gives `[nodes, K]`."""

    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float64]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    leaf: npt.NDArray[np.bool_]
    value: npt.NDArray[np.float64]


def tree_graph(models: Sequence[Any], weights: Sequence[float], classes: int, features: int) -> bytes:
    """Return an ONNX model from `rows [N, F]` float32 to `probabilities [N, C]`: the weighted mean of forests and of gradient boosting (histograms).

    Rows must hold no NaN. What scikit-learn keeps of boosting is read from its private attributes, of 1.9.

    Raises:
        MismatchError: another kind of model.
    """
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.ensemble._forest import ForestClassifier

    nodes, initial, parts = list[Any](), list[Any](), list[str]()
    forest: list[_Tree] = []

    def constant(name: str, value: npt.NDArray[Any]) -> str:
        initial.append(numpy_helper.from_array(value, name))
        return name

    for number, (model, weight) in enumerate(zip(models, weights, strict=True)):
        seen = np.asarray(model.classes_)
        if isinstance(model, ForestClassifier):
            forest += [_of_forest(one.tree_, seen, weight / len(model.estimators_), classes) for one in model.estimators_]
        elif isinstance(model, HistGradientBoostingClassifier):
            raw = f"raw{number}"
            rounds = model._predictors  # pyright: ignore[reportAttributeAccessIssue]
            trees = [_of_boosting(one.nodes, index, len(step)) for step in rounds for index, one in enumerate(step)]
            base = np.asarray(model._baseline_prediction).ravel()  # pyright: ignore[reportAttributeAccessIssue]
            nodes.append(_ensemble(helper, trees, raw, base.tolist()))
            if len(base) == 1:  # p = sigmoid(raw) of the second class, as softmax of (0, raw)
                pair = constant(f"pair{number}", np.array([[0.0, 1.0]], dtype=np.float32))
                nodes.append(helper.make_node("MatMul", [raw, pair], [f"logits{number}"]))
                raw = f"logits{number}"
            place = np.zeros((len(seen), classes), dtype=np.float32)
            place[np.arange(len(seen)), seen] = weight
            nodes.append(helper.make_node("Softmax", [raw], [f"soft{number}"], axis=1))
            nodes.append(helper.make_node("MatMul", [f"soft{number}", constant(f"place{number}", place)], [f"part{number}"]))
            parts.append(f"part{number}")
        else:
            raise MismatchError(f"a {type(model).__name__} is no forest and no gradient boosting of scikit-learn by histograms: it cannot be written as ONNX")
    if forest:
        nodes.append(_ensemble(helper, forest, "forest", []))
        parts.append("forest")
    nodes.append(helper.make_node("Sum", parts, ["probabilities"]))
    graph = helper.make_graph(
        nodes, "trees", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes])], initial,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="limbeck").SerializeToString()


def _of_forest(tree: Any, seen: npt.NDArray[Any], weight: float, classes: int) -> _Tree:
    leaf = tree.children_left < 0
    shares = tree.value[:, 0, :] / tree.value[:, 0, :].sum(axis=1, keepdims=True)
    value = np.zeros((len(leaf), classes))
    value[:, seen] = weight * shares
    return _Tree(tree.feature, tree.threshold, tree.children_left, tree.children_right, leaf, value)


def _of_boosting(nodes: Any, index: int, targets: int) -> _Tree:
    leaf = nodes["is_leaf"].astype(bool)
    value = np.zeros((len(leaf), targets))
    value[:, index] = nodes["value"]
    kinds = (nodes["feature_idx"], nodes["num_threshold"], nodes["left"], nodes["right"])
    feature, threshold, left, right = kinds
    return _Tree(feature.astype(np.int64), threshold.astype(np.float64), left.astype(np.int64), right.astype(np.int64), leaf, value)


def _ensemble(helper: Any, trees: Sequence[_Tree], output: str, base: list[float]) -> Any:
    """One TreeEnsembleRegressor: the sum over trees of what their leaves give, and `base`."""
    sizes = [len(tree.leaf) for tree in trees]
    leaf = np.concatenate([tree.leaf for tree in trees])
    ids = np.repeat(np.arange(len(trees)), sizes)
    within = np.concatenate([np.arange(size) for size in sizes])
    value = np.concatenate([tree.value for tree in trees])
    threshold = np.concatenate([tree.threshold for tree in trees])
    near = threshold.astype(np.float32)
    below = np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)  # x <= threshold for the same float32 x
    told = leaf[:, None] & (value != 0)
    told[leaf, 0] = True  # every leaf says something
    where, target = np.nonzero(told)

    def joined(name: str) -> npt.NDArray[Any]:
        return np.where(leaf, 0, np.concatenate([getattr(tree, name) for tree in trees]))

    told_base = {"base_values": base} if base else {}
    return helper.make_node(
        "TreeEnsembleRegressor",
        ["rows"],
        [output],
        domain="ai.onnx.ml",
        n_targets=value.shape[1],
        aggregate_function="SUM",
        nodes_treeids=ids.tolist(),
        nodes_nodeids=within.tolist(),
        nodes_featureids=joined("feature").tolist(),
        nodes_values=np.where(leaf, 0, below).tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=joined("left").tolist(),
        nodes_falsenodeids=joined("right").tolist(),
        nodes_missing_value_tracks_true=[0] * len(ids),
        target_treeids=ids[where].tolist(),
        target_nodeids=within[where].tolist(),
        target_ids=target.tolist(),
        target_weights=value[where, target].tolist(),
        **told_base,
    )
