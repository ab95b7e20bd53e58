"""How big a model is: parameters, multiply-accumulates, bytes on disk."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.errors import ArtifactError, MismatchError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["file_bytes", "macs", "parameters", "weights_left"]

_Shape = tuple[int, ...]


def parameters(model: "nn.Module") -> int:
    """Return how many numbers a model learns or has learnt: a shared parameter counts once, a frozen one too, buffers not at all.

    A parametrized weight counts as what it comes to, and not as what it is made of.
    """
    return sum(tensor.numel() for tensor in _weights(model))


def weights_left(model: "nn.Module") -> int:
    """Return how many of a model's `parameters` are not zero."""
    return sum(int(tensor.detach().count_nonzero()) for tensor in _weights(model))


def _weights(model: "nn.Module") -> "list[Tensor]":
    """Every parameter once; in the place of what a parametrized weight is made of, the weight."""
    from torch.nn.utils import parametrize

    found: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        made = [getattr(module, name) for name in module.parametrizations] if parametrize.is_parametrized(module) else []  # pyright: ignore[reportGeneralTypeIssues]
        found |= {id(tensor): tensor for tensor in (*made, *module.parameters(recurse=False))}
    return list(found.values())


def _more_ops() -> dict[Any, Callable[..., int]]:
    """Operations that inference on a CPU uses and torch's counter leaves out: its fused attention and LSTM, and products with vectors."""
    import torch
    from torch.utils.flop_counter import sdpa_flop_count

    aten = torch.ops.aten

    def attention(query: _Shape, key: _Shape, value: _Shape, *_args: Any, **_more: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def lstm(x: _Shape, of_input: _Shape, of_hidden: _Shape, *_args: Any, **_more: Any) -> int:  # x [T, N, I], weights [4H, I] and [4H, H]
        return 2 * x[0] * x[1] * (math.prod(of_input) + math.prod(of_hidden))

    def matrix_vector(matrix: _Shape, _vector: _Shape, **_more: Any) -> int:
        return 2 * math.prod(matrix)

    def added_matrix_vector(_added: _Shape, matrix: _Shape, _vector: _Shape, **_more: Any) -> int:
        return 2 * math.prod(matrix)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten.mkldnn_rnn_layer: lstm,
        aten.mv: matrix_vector,
        aten.dot: matrix_vector,
        aten.addmv: added_matrix_vector,
    }


def macs(model: "nn.Module", example: "Tensor", *, ask: "Callable[[nn.Module], object] | None" = None) -> int:
    """Return the multiply-accumulates of one input: floating-point operations by `torch.utils.flop_counter`, halved, over the batch `example [N, ...]`.

    `ask` says how the model is asked about the batch where it takes more than `example`, as a graph network takes edges.

    Counted are matrix products, convolutions (also transposed) and attention, and what `_more_ops` adds; element-wise work, normalisation,
    pooling, softmax and look-ups are not. The model runs once in evaluation mode without a gradient, and every module's mode is put back.

    Raises:
        MismatchError: an empty batch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if example.ndim < 1 or not len(example):
        raise MismatchError(f"MACs are counted on a batch [N, ...] of at least one example, not on {list(example.shape)}")
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False, custom_mapping=_more_ops())
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # the fused transformer layer hides its products from the counter
        model.eval()
        with torch.no_grad(), counter:
            model(example) if ask is None else ask(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode
    return counter.get_total_flops() // 2 // len(example)


def _external(path: Path) -> set[Path]:
    """The files beside an ONNX file that hold its weights."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError:
        raise ArtifactError(f"{path} is not a readable ONNX file: it is damaged; export it again") from None
    entries = [entry for weight in graph.initializer if weight.data_location == onnx.TensorProto.EXTERNAL for entry in weight.external_data]
    return {path.parent / entry.value for entry in entries if entry.key == "location"}


def file_bytes(path: Path) -> int:
    """Return the bytes of an exported file, together with the files its weights were put in where an ONNX file has such.

    Raises:
        ArtifactError: the file, or one that it refers to, is missing, or it is no ONNX file though it is called one.
    """
    files = [path]
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: export it again")
    if path.suffix == ".onnx":
        files += sorted(_external(path))
    for file in files:
        if not file.is_file():
            raise ArtifactError(f"{path} keeps weights in {file.name}, which is missing beside it: export it again")
    return sum(file.stat().st_size for file in files)
