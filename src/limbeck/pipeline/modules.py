"""From an artifact back to something that answers."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.bridges import onnx_runtime
from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError
from limbeck.core.task import Batch, Task

from .pretrained import opened
from .resolve import make_model

__all__ = ["Graph", "example_of", "inputs_of", "load", "load_module", "read_tensors", "taken", "takes"]


class Graph(nn.Module):
    """An exported file as a module: called with inputs `[N, ...]`, it gives logits `[N, C]`, computed by onnxruntime without a gradient.

    What a file takes beside its input is given by name; logits of tokens are `[N, T, C]`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._session = onnx_runtime.session(path)

    def forward(self, inputs: Tensor, **fields: Tensor) -> Tensor:
        return onnx_runtime.run(self._session, {"input": inputs, **fields} if fields else inputs).to(inputs.device)


@torch.no_grad()
def taken(task: Task, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return what a model is called with when a task asks it about a batch: `input`, and what it is told beside by name."""
    found: dict[str, Tensor] = {}

    def note(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.update({"input": args[0], **kwargs})

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        task.forward(model, batch)
    finally:
        hook.remove()
    return found


def takes(inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what a spec says of what a model takes: each input's type, by name; nothing for the one of float32 that goes without saying."""
    told = {name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()}
    return {} if told == {"input": "float32"} else told


def example_of(spec: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return two rows of what a model takes: zeros, and of what it is told beside (which tokens count, say) ones."""
    return {
        name: torch.full((2, *spec["in_shape"]), int(name != "input"), dtype=getattr(torch, kind))
        for name, kind in sorted(spec.get("takes", {"input": "float32"}).items(), key=lambda one: one[0] != "input")
    }


def inputs_of(model: nn.Module) -> list[str]:
    """Return what a model's forward pass must be given, by name: one input for what can be exported, more for a graph network, say."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [one.name for one in parameters if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is an `ArtifactError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): its artifact is damaged; delete it and run the recipe again") from None


def load_module(artifact: Artifact, model: nn.Module | None = None) -> nn.Module:
    """Rebuild a trained module, in eval mode; `model` takes the weights where the artifact cannot tell how to build one.

    Raises:
        ArtifactError: the weights do not fit, or the artifact holds a graph.
    """
    if artifact.kind != "module":
        raise ArtifactError(f"{artifact.path} holds an exported file, not a trainable module: take the stage that it was exported from")
    spec = artifact.spec
    if model is None and spec["builder"] is None:
        raise ArtifactError(f"{artifact.path} holds the weights of a {spec['class']} that limbeck did not build: load(path, model=...) with one of your own")
    if model is None and spec.get("format") == "transformers":
        return opened(artifact.path, spec)
    built = make_model(spec) if model is None else model
    weights = lookup.find("compress", spec["packed"]).unpack(artifact.model_file) if "packed" in spec else read_tensors(artifact.model_file)
    try:
        built.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()
        raise ArtifactError(f"the weights of {artifact.path} do not fit {type(built).__name__}: {' '.join(first[1:2]).strip()}") from None
    return built.eval()


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load what an artifact holds, in eval mode: the trained module, or the exported file as a module that onnxruntime computes.

    `model` takes the weights where limbeck did not build the module itself.

    Raises:
        ArtifactError: the folder is no artifact, its bytes do not match its manifest, or the weights do not fit.
    """
    artifact = Artifact.open(Path(path))
    return load_module(artifact, model) if artifact.kind == "module" else Graph(artifact.model_file)
