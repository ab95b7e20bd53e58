"""ONNX: one file with a free batch dimension, the same bytes for the same weights.

The file's input is `input`, its output `logits`: of tokens, one row of them each, and any number of tokens. BatchNorm is folded into the convolution before
it. A node is named after its layer (`stem.0/Conv`), so that reports and `keep_float` can speak of layers.
"""

import ast
import logging
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from limbeck.bridges.onnx import LIMIT, canonical_bytes
from limbeck.bridges.onnx_runtime import run, session
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.files import atomic_write
from limbeck.core.knowledge import Dense, Hidden

from ._exporter import Exporter

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["Onnx"]

_OPSETS = range(18, 24)


class Onnx(Exporter):
    """Write a module as one ONNX file.

    Args:
        opset: version of ONNX's operators, 18 to 23; a lower one opens in older runtimes.
        outputs: of a model with several answers (exits, heads), main alone as `logits`, or all: `logits` first, the others under their names.
    """

    file = "model.onnx"

    def __init__(self, *, opset: int = 20, outputs: Literal["main", "all"] = "main") -> None:
        if opset not in _OPSETS:
            raise RecipeError(f"opset must be {_OPSETS[0]} to {_OPSETS[-1]} for this version of PyTorch, not {opset}")
        self.opset = opset
        self.outputs: Literal["main", "all"] = outputs

    def export(self, model: nn.Module, example: Tensor | Mapping[str, Tensor], path: Path) -> None:
        """Write `model`, in evaluation mode, to `path`, once it was opened and asked at two more batch sizes.

        Raises:
            DataError: an example without rows.
            MismatchError: a model that fails on the example, answers with something else than `[N, C]` (or, of tokens `[N, T]`, `[N, T, C]`), holds more than
                2 GiB, or does what ONNX cannot say; the message names the layer where it is known.
            StorageError: the file cannot be written.
        """
        inputs = {"input": example} if isinstance(example, Tensor) else dict(example)
        if bad := [list(one.shape) for one in inputs.values() if one.ndim < 2 or not len(one)]:
            raise DataError(f"an example to export with must be [N, ...] with N of 1 or more, not {bad[0]}")
        name = type(model).__name__
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
        if size > LIMIT:
            raise MismatchError(f"{name} holds {size:,} bytes of weights and one ONNX file {LIMIT:,}: export a smaller model")
        several = {one: value if len(value) > 1 else torch.cat([value, value]) for one, value in inputs.items()}  # one row would be taken for a constant
        with _evaluating(model), torch.no_grad():
            asked = _ask(model, several, self.outputs)
            graph = _trace(asked, several, self.opset)
        _check_batches(name, graph, several)
        atomic_write(path, graph)


class _Answers(nn.Module):
    """A model as ONNX has it: inputs in order, those after the first handed over by their names; answers in order, as whole logits."""

    def __init__(self, model: nn.Module, fields: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.fields, self.names = model, tuple(fields), tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        said = self.model(inputs[0], **dict(zip(self.fields, inputs[1:], strict=True)))
        return tuple(_whole(said[name]) for name in self.names) if self.names else (_whole(said),)


def _whole(said: Any) -> Any:
    """Logits, multiplied out where a model leaves that to others."""
    return said.logits if isinstance(said, (Dense, Hidden)) else said


def _ask(model: nn.Module, inputs: Mapping[str, Tensor], outputs: Literal["main", "all"]) -> nn.Module:
    """Refuse a model that does not answer with logits in plain PyTorch; return one that takes inputs and gives answers in order, where it does not itself."""
    name = type(model).__name__
    first, *others = inputs
    example = inputs[first]
    try:
        answer = model(example, **{one: inputs[one] for one in others})
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise MismatchError(f"{name} fails on an example {list(example.shape)}{_layer(model, error)}: {_line(str(error))}") from error
    several = isinstance(answer, Mapping) and "main" in answer
    names = ["main", *(one for one in answer if one != "main" and outputs == "all")] if several else []
    for one in [answer[one] for one in names] if several else [answer]:
        _check_answer(name, _whole(one), example)
    return _Answers(model, others, names).eval() if several or others or _whole(answer) is not answer else model


def _check_answer(name: str, answer: object, example: Tensor) -> None:
    if not isinstance(answer, Tensor):
        raise MismatchError(f"{name} answers with {type(answer).__name__}, and an exported model with one tensor [N, C]: wrap it in a module that picks it")
    of_tokens = not example.is_floating_point() and answer.shape[:-1] == example.shape
    if (answer.ndim != 2 and not of_tokens) or len(answer) != len(example):
        raise MismatchError(f"{name} answers {list(example.shape)} with {list(answer.shape)}, and an exported model with [N, C], here [{len(example)}, C]")


def _trace(model: nn.Module, inputs: Mapping[str, Tensor], opset: int) -> bytes:
    """Return the bytes of the file; rows of tokens may be of any length that the model can read."""
    names = ["logits", *(model.names[1:] if isinstance(model, _Answers) else ())]
    batch = torch.export.Dim("batch")
    free = tuple({0: batch} if one.is_floating_point() or one.ndim != 2 else {0: batch, 1: torch.export.Dim.AUTO} for one in inputs.values())
    with _quiet():
        try:
            program = torch.onnx.export(
                model, tuple(inputs.values()), dynamo=True, dynamic_shapes=(free,) if isinstance(model, _Answers) else free, input_names=[*inputs],
                output_names=names, opset_version=opset, external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason, where = _reason(model, error)
            raise MismatchError(
                f"{type(model).__name__} does not export to ONNX{where}: {reason}; write what it does there with tensor operations that ONNX has"
            ) from error
    assert program is not None
    proto = program.model_proto
    _name_sizes(proto.graph)
    _name_nodes(proto.graph, "model." if isinstance(model, _Answers) else "")
    return canonical_bytes(proto)


def _check_batches(name: str, graph: bytes, inputs: Mapping[str, Tensor]) -> None:
    """Refuse a file in which the batch size was frozen: ask it about one row and about one more than it was exported with."""
    try:
        opened = session(graph)
    except ArtifactError as error:
        raise MismatchError(f"{name} exports to a file that does not run: {error}") from error
    if isinstance(frozen := opened.get_inputs()[0].shape[0], int):
        raise MismatchError(f"{name} exports for batches of {frozen} only: its forward pass fixes the batch size; take it from the input's shape")
    made = len(next(iter(inputs.values())))
    for rows in ({one: value[:1] for one, value in inputs.items()}, {one: torch.cat([value, value[:1]]) for one, value in inputs.items()}):
        count = len(next(iter(rows.values())))
        try:
            answered = len(run(opened, rows, batch=count))
        except (ArtifactError, MismatchError) as error:
            raise MismatchError(f"{name}, exported with a batch of {made}, fails on a batch of {count}: {error}") from error
        if answered != count:
            raise MismatchError(
                f"{name}, exported with a batch of {made}, answers a batch of {count} with {answered} rows: "
                "its forward pass fixes the batch size; take it from the input's shape"
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, and give every layer its own mode back."""
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch.onnx is known to say of PyTorch's own code: deprecations, weights that an LSTM lists anew, and that torchvision is not there."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def other(record: logging.LogRecord) -> bool:
        return record.msg != "torchvision is not installed. Skipping %s"

    logger.addFilter(other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", re.escape("`isinstance(treespec, LeafSpec)` is deprecated"), FutureWarning, "copyreg")
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning, r"torch\.onnx")  # said of every second input
            warnings.filterwarnings("ignore", "_check_is_size will be removed in a future PyTorch release", FutureWarning)
            warnings.filterwarnings(
                "ignore", r"The tensor attributes (self\.[\w.]*_flat_weights\[\d+\](, )?)+ were assigned during export", UserWarning, "contextlib"
            )
            yield
    finally:
        logger.removeFilter(other)


def _reason(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """Return why an export failed, in one line, and ` in layer 'x'` where that is known."""
    where, reason = "", _line(str(error))
    cause: BaseException | None = error
    while cause is not None:
        where = _layer(model, cause) or where
        reason = _line(str(cause))
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(cause)):
            return f"ONNX has no operator for {found[1]}", where
        cause = cause.__cause__
    return reason, where


def _layer(model: nn.Module, error: BaseException) -> str:
    """Return ` in layer 'x'` for the innermost layer of `model` whose forward pass was running when `error` rose."""
    names = {id(layer): name for name, layer in model.named_modules()}
    found = ""
    trace: TracebackType | None = error.__traceback__
    for frame, _ in traceback.walk_tb(trace):
        layer = frame.f_locals.get("self")
        if isinstance(layer, nn.Module) and names.get(id(layer)):
            found = f" in layer {names[id(layer)]!r} ({type(layer).__name__})"
    return found


def _line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _name_sizes(graph: "GraphProto") -> None:
    """Call the free length of rows `tokens`: the exporter numbers it."""
    free = [dim.dim_param for one in graph.input for dim in one.type.tensor_type.shape.dim[1:2] if dim.dim_param]
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in free:
                dim.dim_param = "tokens"


def _name_nodes(graph: "GraphProto", wrapper: str) -> None:
    """Name every node after its layer, without the wrapper's name, and operator, numbered where a layer has several of one kind."""
    seen: Counter[str] = Counter()
    initializers = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        layer = _layer_of(node, initializers).removeprefix(wrapper)
        name = f"{layer}/{node.op_type}" if layer else node.op_type
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _layer_of(node: "NodeProto", initializers: set[str]) -> str:
    """Return the path of a node's layer: that of its weight, else the scope that the exporter noted."""
    for name in node.input:
        if name in initializers and name.endswith(".weight"):
            return name.removesuffix(".weight")
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""
