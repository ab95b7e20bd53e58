"""The four things that the slot `compress` holds, and what they may ask while they work.

A `Surgery` makes a smaller module of a module; a `Packer` writes a module's weights as a file of fewer bytes; a `Compressor` makes a smaller file of an
exported one; a `Saliency` is what a pruning surgery judges by.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError
from limbeck.core.task import Batch, Task

__all__ = ["Bench", "Compensating", "Compressor", "Held", "Method", "Operated", "Packer", "Saliency", "Surgery"]


@dataclass(frozen=True)
class Bench:
    """What a method may ask while it works: the task, whose training data and own loss it sees, and measures that are not its own business.

    `macs(model)`: multiply-accumulates of one input; `latency_ms(model)`: the median latency of its exported file on this machine, batch 1, one thread;
    `score(model)`: the task's metric on the validation split, turned so that higher is better; it raises DataError where there is no such split.
    """

    task: Task
    macs: Callable[[nn.Module], int]
    latency_ms: Callable[[nn.Module], float]
    score: Callable[[nn.Module], float]
    seed: int = 0
    device: torch.device | None = None

    def batches(self, examples: int, *, batch_size: int = 128) -> Iterator[Batch]:
        """Give training batches, shuffled by the seed and augmented as in training, until `examples` were given, all of the split where it has fewer.

        Raises:
            DataError: fewer than one example is asked for.
        """
        if examples < 1:
            raise DataError(f"{examples} examples were asked for: a method that reads data needs one or more")
        given, size = 0, min(batch_size, examples, self.task.facts().examples)
        for raw in self.task.loader("train", batch_size=size, seed=self.seed, device=self.device).batches(0):
            if given >= examples:
                return
            batch = self.task.batch(raw)
            given += next(iter(batch.values())).shape[0]
            yield batch

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the task's own loss of a model, one per prediction `[N]`."""
        return self.task.loss(self.task.forward(model, batch), batch)


@dataclass(frozen=True)
class Operated:
    """What a surgery made: the smaller model, and all that must be told of it.

    `record`: what `Surgery.rebuild` needs, JSON-able; `metrics`: figures for the artifact, by names that say their unit; `layers`: a row for each layer that
    was looked at, `name` first, for the report; `said`: what was decided that a person would want to know, a line each.
    """

    model: nn.Module
    record: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    layers: Sequence[Mapping[str, Any]] = ()
    said: Sequence[str] = ()


class Surgery(ABC):
    """Make a smaller module of a module.

    What it did is kept in the artifact's spec as (the surgery's name, its record), so that the module is built again in a clean process: the builder's fresh
    model, `rebuild` by each surgery's record in order, then the weights.
    """

    lasts: bool = True
    """Whether the model stays of another structure; False for one that is only prepared for training, and plain again (`plain`) once that is done."""

    @abstractmethod
    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the smaller model; `model`, in evaluation mode, may be changed in place, and is left as it was where an error is raised.

        Raises:
            RecipeError, MismatchError, DataError: what cannot be reached (with the closest that can), a layer that cannot be changed (with why).
        """

    @staticmethod
    @abstractmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return a model of the operated structure, made of one of the structure before; its weights need not mean anything."""


class Held(Surgery):
    """A surgery whose work training would undo, were it not held: zeros that must stay zero."""

    @staticmethod
    @abstractmethod
    def hold(model: nn.Module, record: Mapping[str, Any]) -> None:
        """Make sure that training keeps what the surgery made; called on a model with its weights loaded, before it is trained."""


class Packer(ABC):
    """Write a module's weights as a file of fewer bytes."""

    file: str
    """The file's name in its artifact, `model.` and a suffix of its own."""

    @abstractmethod
    def pack(self, model: nn.Module, path: Path) -> Mapping[str, Any]:
        """Write the weights of a plain module to `path`; return the figures and decisions, JSON-able, `file_bytes` among them."""

    @staticmethod
    @abstractmethod
    def unpack(path: Path) -> dict[str, Tensor]:
        """Return the state dict, exactly as it was packed.

        Raises:
            ArtifactError: a file that is damaged or no such file.
        """


class Compressor(ABC):
    """Make an exported file smaller or faster."""

    @abstractmethod
    def compress(self, source: Path, path: Path, calibration: Tensor | Mapping[str, Tensor]) -> dict[str, Any]:
        """Write the compressed form of the file `source` to `path`, calibrated on real inputs `[N, ...]`; return what was decided, JSON-able.

        A file of several inputs is given those of each, by name.
        """


class Saliency(ABC):
    """How much it costs to take a weight away: what pruning judges by, lowest first.

    `contributions` are of single weights, signed where the method's are; `total` is what several of them, which go together (a channel, a head), cost as one.
    """

    @abstractmethod
    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        """Return, for each named parameter, a tensor of its shape: what each weight contributes. The model's weights, mode and gradients are left as they were.

        Raises:
            MismatchError: a model that this saliency says nothing about.
        """

    @abstractmethod
    def total(self, contributions: Tensor) -> Tensor:
        """Return what the weights of each unit cost together: contributions `[U, K]` to `[U]`, zero or more."""


class Compensating(Saliency):
    """A saliency that knows how the weights that stay make up for those that go."""

    @abstractmethod
    def compensate(self, model: nn.Module, removed: Mapping[str, Tensor], bench: Bench) -> None:
        """Set the weights `removed` (True where one goes) to zero and change the others so that the loss rises least, in place."""


Method = Surgery | Packer | Compressor | Saliency
"""What the slot `compress` holds."""
