"""Objectives that read the student's weights: which ones, and how they lie.

Shapes: O outputs, I inputs, K weights of a group, G groups.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._precision import at_least_float32

__all__ = ["Layers", "Weighed", "by_input", "by_output"]

Layers = Literal["auto"] | list[str]
"""`auto`, every layer with weights, or module paths: these and all inside them."""


def by_output(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a layer's weights as a row for each of its outputs (channels, units): `[O, K]`."""
    if not isinstance(layer, _ConvTransposeNd):
        return weight.flatten(1)
    grouped = weight.unflatten(0, (layer.groups, -1))  # [groups, I / groups, O / groups, ...]
    return grouped.transpose(1, 2).flatten(0, 1).flatten(1)


def by_input(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a layer's weights as a row for each of its inputs: `[I, K]`."""
    if isinstance(layer, _ConvTransposeNd):
        return weight.flatten(1)
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    grouped = weight.unflatten(0, (groups, -1))  # [groups, O / groups, I / groups, ...]
    return grouped.transpose(1, 2).flatten(0, 1).flatten(1)


def _names(layer: nn.Module) -> list[str]:
    """The names of the weights that a layer itself holds: matrices and kernels, no embeddings, norms or biases."""
    if isinstance(layer, (nn.Linear, _ConvNd)):
        return ["weight"]
    if isinstance(layer, nn.MultiheadAttention):
        return [name for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight") if getattr(layer, name) is not None]
    if isinstance(layer, nn.RNNBase):
        return [name for name, value in layer.named_parameters(recurse=False) if value.ndim > 1]
    return []


def _original(layer: nn.Module, name: str) -> Tensor:
    """What is learnt behind a weight, by which two names of one are known."""
    if parametrize.is_parametrized(layer, name):
        held: Mapping[str, Tensor] = dict(layer.named_parameters())
        return next(value for path, value in held.items() if path.startswith(f"parametrizations.{name}.original"))
    return getattr(layer, name)


class Weighed(Objective):
    """A penalty on the student's weights, `penalty` summed over those that were chosen; a weight with two names counts once.

    A weight that is computed of others (`torch.nn.utils.parametrize`) counts as what it comes to.
    """

    batchwise = True
    perfect = "no"
    usual = 1e-4

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        if layers != "auto" and (isinstance(layers, str) or not layers):
            raise RecipeError(f"{type(self).__name__} has no layers to weigh, layers: {layers!r}: name some, layers: [layer1, head], or leave layers: auto")
        self.layers: Layers = layers
        self._paths = [""] if layers == "auto" else list(dict.fromkeys(layers))
        self._found: list[tuple[str, str, str]] = []

    @property
    def needs(self) -> Needs:
        return Needs(Reads(outputs=frozenset(), modules=frozenset(self._paths)), None)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        seen: set[int] = set()
        self._found = []
        for path in self._paths:
            told = f"layer {path!r}" if path else "the student"
            if path not in student.modules:
                raise MismatchError(
                    f"{type(self).__name__} reads the student's weights, and this scheme does not hand over {told}: take one that trains one student, "
                    "such as offline"
                )
            layers = student.modules[path].named_modules()
            held = [(inner, name, id(_original(layer, name))) for inner, layer in layers for name in _names(layer)]
            for inner, name, known in held:
                if known not in seen:
                    seen.add(known)
                    self._found.append((path, inner, name))
            if not held:
                raise MismatchError(
                    f"{type(self).__name__}: {told} ({type(student.modules[path]).__name__}) holds no weights of its own to weigh: name linear layers, "
                    "convolutions, attention or recurrent layers, or modules that hold some"
                )

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        assert self._found, "an objective is bound before it is asked"
        total: Tensor | None = None
        for layer, weight in self._weights(student):
            cost = self.penalty(layer, at_least_float32(weight))
            total = cost if total is None else total + cost
        assert total is not None
        return total

    def _weights(self, student: Knowledge) -> Iterator[tuple[nn.Module, Tensor]]:
        for path, inner, name in self._found:
            layer = student.modules[path].get_submodule(inner)
            yield layer, getattr(layer, name)

    @abstractmethod
    def penalty(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """Return what one layer's weights cost, a scalar."""
