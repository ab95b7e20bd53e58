"""onnxruntime: run an exported file on this processor.

Shapes: N examples, C classes.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.core.errors import ArtifactError, DataError, MismatchError, did_you_mean

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["run", "session"]

_ERRORS = "onnxruntime.capi.onnxruntime_pybind11_state"
"""Where onnxruntime's exceptions are; they have no base of their own."""

_SILENT = 4
"""Log nothing but what ends the process: whatever else goes wrong is raised."""

_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(uint8)": torch.uint8, "tensor(int8)": torch.int8, "tensor(bool)": torch.bool,
}  # fmt: skip


def session(source: Path | bytes, *, threads: int | None = None) -> "InferenceSession":
    """Open an ONNX file, or its bytes, for the processor; `threads` work on one operator, as many as there are cores where it is None.

    Raises:
        ArtifactError: the file is missing, damaged, or asks for what this onnxruntime has not.
        MismatchError: `threads` below one.
    """
    import onnxruntime

    state = import_module(_ERRORS)

    if threads is not None and threads < 1:
        raise MismatchError(f"threads must be 1 or more, not {threads}")
    if isinstance(source, Path) and not source.is_file():
        raise ArtifactError(f"{source} is not a file: export the model first")
    path = source if isinstance(source, Path) else "the exported model"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"])
    except (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument) as error:
        raise ArtifactError(f"{path} is no valid ONNX file ({_first_line(error)}): it is damaged; delete its stage and run the recipe again") from error
    except (state.Fail, state.NotImplemented, state.RuntimeException) as error:
        raise ArtifactError(
            f"onnxruntime {onnxruntime.__version__} cannot open {path} ({_first_line(error)}): export it again in float32, or with a lower opset"
        ) from error


def run(source: "Path | InferenceSession", inputs: Tensor | Mapping[str, Tensor], *, batch: int = 256, output: str | None = None) -> Tensor:
    """Ask a file, or a session on it, about `inputs [N, ...]`, `batch` at a time; return its first output, `logits [N, C]`, or the one named `output`.

    A file of several inputs is asked by a mapping of their names.

    Raises:
        ArtifactError: the file is missing or damaged, or fails on these inputs.
        MismatchError: inputs whose shape or type is not what the file takes, other inputs than it takes, or an output that it has not or that is no tensor.
        DataError: no inputs at all.
    """
    state = import_module(_ERRORS)
    if batch < 1:
        raise MismatchError(f"batch must be 1 or more, not {batch}")
    opened = session(source) if isinstance(source, Path) else source
    name = str(source) if isinstance(source, Path) else "the exported file"
    takes = opened.get_inputs()
    names = [take.name for take in takes]
    given = {names[0]: inputs} if isinstance(inputs, Tensor) else dict(inputs)
    if sorted(given) != sorted(names):
        raise MismatchError(f"{name} takes {len(takes)} inputs ({', '.join(names)}), and {', '.join(given) or 'none'} was given: name each of them")
    if any(one.ndim and not len(one) for one in given.values()):
        raise DataError(f"no inputs for {name}: give at least one example")
    for take in takes:
        _check(name, take.shape, take.type, given[take.name], batch)
    gives = {each.name: each.type for each in opened.get_outputs()}
    asked = output or next(iter(gives))
    if not gives.get(asked, "none").startswith("tensor("):
        what = f"gives {asked!r} as {gives[asked]}, which is no tensor" if asked in gives else f"has no output {asked!r}"
        raise MismatchError(f"{name} {what}{did_you_mean(asked, gives)}")
    whole = {one: value.detach().cpu().contiguous().numpy() for one, value in given.items()}
    try:
        starts = range(0, len(whole[names[0]]), batch)
        parts = [torch.from_numpy(opened.run([asked], {one: value[at : at + batch] for one, value in whole.items()})[0]) for at in starts]
    except (state.Fail, state.InvalidArgument, state.RuntimeException, state.NotImplemented) as error:
        shapes = ", ".join(str(list(value.shape)) for value in whole.values())
        raise ArtifactError(f"{name} failed on inputs {shapes} ({_first_line(error)}): export the model again") from error
    return torch.cat(parts)


def _check(name: str, shape: list[int | str | None], kind: str, inputs: Tensor, batch: int) -> None:
    """Compare what a file takes, where a size that is free is a name or None, with what is given."""
    if _TYPES.get(kind) != inputs.dtype:
        raise MismatchError(f"{name} takes inputs of type {kind}, and {str(inputs.dtype).removeprefix('torch.')} was given: convert them")
    given = [min(batch, *inputs.shape[:1]), *inputs.shape[1:]] if inputs.ndim else []
    if len(shape) != len(given) or any(isinstance(want, int) and want != have for want, have in zip(shape, given, strict=True)):
        wants = ", ".join(str(size) if isinstance(size, int) else "N" for size in shape)
        raise MismatchError(f"{name} takes inputs [{wants}], and {list(inputs.shape)} was given: prepare them as the training data were")


def _first_line(error: Exception) -> str:
    return str(error).removeprefix("[ONNXRuntimeError] : ").strip().partition("\n")[0]
