"""Where a task's batches come from: a user's own loaders, or whatever else gives the same words."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Unpack, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch, How, Loader, Split, Task

from ._adapter import UserLoader, batch_count, undisturbed

__all__ = ["Supplied", "Supply", "UserLoaders", "fitting", "labels_of"]


class Supply(ABC):
    """The batches of each split, and what is known of them."""

    @abstractmethod
    def splits(self) -> tuple[Split, ...]:
        """The splits that are there."""

    @abstractmethod
    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        """The batches of a split, as `Task.loader` has them."""

    @abstractmethod
    def fingerprint(self, kind: str) -> str:
        """A digest of the data for a task of this kind."""

    @abstractmethod
    def first(self) -> tuple[Batch, int]:
        """A training batch, and how many training examples there are; nothing random is moved by it."""

    @abstractmethod
    def preprocess(self) -> Mapping[str, Any]:
        """What was done to an input, as `Facts.preprocess` has it."""

    @abstractmethod
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes, where the data tell them."""


class UserLoaders(Supply):
    """A user's own loaders: split -> a torch DataLoader or another iterable of batches that can be iterated again and again.

    `read` makes a batch of what they give; `task` is the task's class, for messages.
    """

    def __init__(self, loaders: Mapping[Split, Iterable[Any]] | None, read: Callable[[object], Batch], task: str) -> None:
        self._loaders, self._read, self._task = dict(loaders or {}), read, task
        for split, loader in self._loaders.items():
            if split not in get_args(Split):
                raise RecipeError(f"no split {split!r}{did_you_mean(split, get_args(Split))}")
            if isinstance(loader, Iterator):
                raise DataError(
                    f"the {split} loader is a {type(loader).__name__}, which can be iterated only once: give a list, a DataLoader, or a class with __iter__"
                )
            if not isinstance(loader, Iterable):
                raise DataError(f"the {split} loader is a {type(loader).__name__}, which cannot be iterated: give a DataLoader or another iterable of batches")
        if self._loaders and "train" not in self._loaders:
            raise RecipeError(f"there are loaders for {', '.join(self._loaders)} and none for train: give one")
        self._token = uuid.uuid4().hex

    def _of(self, split: Split) -> Iterable[Any]:
        if split not in self._loaders:
            raise DataError(f"there is no {split} loader; there are: {', '.join(self._loaders) or 'none'}: {self._task}({{{split!r}: ...}})")
        return self._loaders[split]

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in get_args(Split) if split in self._loaders)

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        if how.get("views") is not None:
            raise MismatchError(
                "a loader of one's own draws its augmentation as it likes, and the teacher knows the answers to some draws alone: give limbeck's own data, or "
                "mappings with `id` and `view` that are not augmented otherwise, in a loop of one's own"
            )
        return UserLoader(self._of(split), split, self._read, rank=how.get("rank", 0), world=how.get("world", 1), device=how.get("device"))

    def fingerprint(self, kind: str) -> str:
        return digest({"task": kind, "token": self._token})

    def first(self) -> tuple[Batch, int]:
        """The first training batch; the examples are those of a torch DataLoader's data set, and else every batch counts for as large as the first."""
        loader = self._of("train")
        batches = batch_count(loader, "train")
        with undisturbed(loader):
            first = self._read(next(iter(loader)))
        data = loader.dataset if isinstance(loader, DataLoader) else None
        return first, len(data) if isinstance(data, Sized) else batches * len(first["input"])

    def every(self) -> Iterator[Batch]:
        """Every training batch; nothing random is moved by it."""
        loader = self._of("train")
        with undisturbed(loader):
            yield from map(self._read, loader)

    def preprocess(self) -> Mapping[str, Any]:
        return {}

    def names(self) -> tuple[str, ...] | None:
        return None


class Supplied(Task):
    """A task whose batches come from a `Supply`. A final class says what is known of them, how a model is asked, its loss and its scores."""

    kind: str
    """The task's name among the tasks."""

    def __init__(self, supply: Supply, read: Callable[[object], Batch]) -> None:
        self._supply, self._read = supply, read

    def batch(self, raw: object) -> Batch:
        """Return what a loader gave as `{"input", "label"?, "id"?}`: `(x, y)`, `x`, or a mapping, also one of Hugging Face's (`pixel_values`, `labels`)."""
        return self._read(raw)

    def fingerprint(self) -> str:
        """A digest of the data; for loaders one that no other object has: limbeck cannot see what they give, so nothing of theirs is taken from a cache."""
        return self._supply.fingerprint(self.kind)

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        """The batches of a split; of a user's own loader batch size and order are its own: `batch_size` and `seed` do not change them."""
        return self._supply.loader(split, **how)

    def splits(self) -> tuple[Split, ...]:
        """The splits that are there; none in a user's own loop."""
        return self._supply.splits()


def labels_of(batch: Batch, task: str) -> Tensor:
    """Return a batch's labels, or say that the task needs them."""
    if "label" not in batch:
        raise MismatchError(
            f"the batch has no labels (fields {', '.join(batch)}), and the task's loss needs them: give (x, y), or name them, {task}(label=...)"
        )
    return batch["label"]


def fitting(knowledge: Knowledge, batch: Batch, task: str) -> tuple[Tensor, Tensor]:
    """Return a model's numbers and the labels, both `[N, C]` and in the numbers' precision, float32 at least; refuse unequal shapes, which would broadcast."""
    said, labels = knowledge.main.logits, labels_of(batch, task)
    if said.shape != labels.shape:
        raise MismatchError(f"the model gives {list(said.shape)} and the labels are {list(labels.shape)}: {task} needs a number for each label")
    said = said.float() if said.dtype in (torch.float16, torch.bfloat16) else said
    return said, labels.to(said.dtype)
