"""ONNX files as limbeck keeps them: read with one clear error, written with the same bytes for the same weights."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.core.errors import ArtifactError, MismatchError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["LIMIT", "canonical_bytes", "load"]

LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold, and so the largest file without external data."""


def load(path: Path) -> "ModelProto":
    """Read and check an ONNX file.

    Raises:
        ArtifactError: the file is missing, empty, truncated, or no valid ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise ArtifactError(f"{path} is not a file: export the model first") from None
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"{path} is no valid ONNX file ({reason}): it is damaged; delete its stage and run the recipe again") from error
    return model


def canonical_bytes(model: "ModelProto") -> bytes:
    """Strip `model`, in place, of whatever does not compute (documentation, stack traces, folders, versions of the producer) and serialize it.

    Attributes are put in the order of their names; shapes of intermediate values, which a reader infers anyway, are dropped.

    Raises:
        MismatchError: more than 2 GiB, which one ONNX file cannot hold.
    """
    size = model.ByteSize()
    if size > LIMIT:
        raise MismatchError(f"the model takes {size:,} bytes and one ONNX file holds {LIMIT:,}: export a smaller model")
    model.producer_name = "limbeck"
    for field in ("producer_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    for function in model.functions:
        for field in ("doc_string", "metadata_props", "value_info"):
            function.ClearField(field)
        _strip_nodes(function.node)
    for graph in _graphs(model.graph):
        for field in ("doc_string", "metadata_props", "value_info"):
            graph.ClearField(field)
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.ClearField("doc_string")
            value.ClearField("metadata_props")
        _strip_nodes(graph.node)
    return model.SerializeToString(deterministic=True)


def _strip_nodes(nodes: "Iterable[NodeProto]") -> None:
    for node in nodes:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        ordered = sorted(node.attribute, key=lambda attribute: attribute.name)
        node.ClearField("attribute")
        node.attribute.extend(ordered)


def _graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    """Give a graph and those inside its nodes (branches, loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)
