"""From an artifact back to something that answers."""

import inspect
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.bridges import onnx_runtime
from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError

from .resolve import make_model

__all__ = ["Graph", "inputs_of", "load", "load_module", "read_tensors"]


class Graph(nn.Module):
    """An exported file as a module: called with inputs `[N, ...]`, it gives logits `[N, C]`, computed by onnxruntime without a gradient."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._session = onnx_runtime.session(path)

    def forward(self, inputs: Tensor) -> Tensor:
        return onnx_runtime.run(self._session, inputs).to(inputs.device)


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
