"""A task: the data, how a model is asked, what its own loss is, and how it is scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn

from .errors import DataError, RecipeError
from .knowledge import Knowledge
from .lookup import find

__all__ = ["Batch", "Facts", "How", "Loader", "Sequel", "Split", "Task", "default_task", "starts"]

Batch = Mapping[str, Tensor]
"""Field -> tensor; `id [N]` is int64 and unique within a data fingerprint where it is there. `labelled [N]`, where it is there, says which predictions have a
label: objectives that read labels are means over these alone."""

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Facts:
    """What a model builder and an objective may know of the data before training.

    `in_shape`: one example's shape without the batch; `classes`: how many; `class_names`: one each; `examples`: of the training split;
    `labelled`: whether batches carry `label`; `preprocess`: what was done to an input before the model saw it, JSON-able, kept with the artifact.
    """

    in_shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    examples: int
    labelled: bool = True
    preprocess: Mapping[str, Any] = field(default_factory=dict)


class How(TypedDict, total=False):
    """How a split is read, as `Task.loader` says; seed and rank 0, one process and no device go without saying."""

    batch_size: Required[int]
    seed: int
    rank: int
    world: int
    device: torch.device | None
    views: int | None
    whole: bool


class Loader(ABC):
    """The batches of one split, as one process sees them."""

    @abstractmethod
    def __len__(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Give the batches of `epoch`, the first `skip` left out: a pure function of the epoch for loaders of ours."""


def starts(count: int, how: How, *, of: str = "the training split has {} examples") -> range:
    """Return where in an epoch's order of `count` examples each batch of a process begins, as `Task.loader` promises; `of` tells how many there are."""
    size, rank, world, whole = how["batch_size"], how.get("rank", 0), how.get("world", 1), how.get("whole", False)
    assert 0 <= rank < world
    if size < 1:
        raise RecipeError(f"batch_size is {size}; it must be one or more")
    if not whole and size * world > count:
        on_all = f" on each of {world} processes" if world > 1 else ""
        raise DataError(f"batch_size is {size}{on_all}, and {of.format(count)}: no batch can be filled; lower batch_size")
    return range(rank * size, count if whole else count // (size * world) * size * world, world * size)


class Task(ABC):
    """The data, how a model is asked, what its own loss is, and how it is scored."""

    metric: str = "accuracy"
    """The validation metric that chooses the best epoch."""
    higher_is_better: bool = True

    @abstractmethod
    def facts(self) -> Facts:
        """What is known of the data; reads them at the first call."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the data and of all that is done to them, without loading them."""

    @abstractmethod
    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        """The batches of a split: `batch_size` per process and batch.

        The training split is shuffled by (seed, epoch), augmented, and its last incomplete round is left out; batch k of rank r of `world` holds
        examples `(k * world + r) * batch_size` onward of the epoch's order, so the union over ranks is the same for every world. The others come
        whole and in order, a batch to each rank in turn.

        With `views`, epoch e of the training split draws its augmentation as epoch `e mod views` does, and batches say so: `view [N]`. With `whole`, the
        training split too comes whole and in order, augmented as ever.

        Raises:
            MismatchError: `views` of a loader whose augmentation is not ours to repeat.
        """

    @abstractmethod
    def splits(self) -> tuple[Split, ...]:
        """The splits that are there; `train` always is."""

    @abstractmethod
    def batch(self, raw: object) -> Batch:
        """Return what a loader gave as a `Batch`; loaders of ours give one already."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        """Ask the model about a batch."""

    @abstractmethod
    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        """The task's own loss, one per prediction `[N]`, at temperature 1."""

    def outcome(self, answer: Callable[[Batch], Knowledge]) -> dict[str, float]:
        """Figures of a finished model that no split gives: what it does in the world. None, for most."""
        return {}

    @abstractmethod
    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        """Name -> one number per prediction `[N]`, whose mean over a split is a metric; `metric` is among them, and a `loss` breaks its ties."""


class Sequel(Task, ABC):
    """A task that comes after others: its training split holds what is new."""

    @abstractmethod
    def so_far(self) -> Task:
        """Everything that has been taught with it, by the same labels, without augmentation: where examples are found again by id."""


def default_task() -> Task:
    """Return the task of a user's own loop: classification of the batches that it is given."""
    return find("tasks", "classify")()
