"""From what a user's loader and a user's model give to the words that limbeck speaks.

Shapes: N examples, C classes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from limbeck.core.errors import DataError, MismatchError
from limbeck.core.task import Batch, Loader, Split

__all__ = ["HasLogits", "UserLoader", "as_batch", "as_logits", "batch_count", "real_numbers", "undisturbed", "whole_numbers"]


@runtime_checkable
class HasLogits(Protocol):
    """What a model may return in place of a tensor: anything with its logits in `.logits`."""

    logits: Tensor


def _first(raw: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((raw[name] for name in names if name in raw), None)


def whole_numbers(value: object, count: int, *, name: str = "label") -> Tensor:
    """Return one whole number for each of `count` examples as int64 `[N]`, or refuse what is none."""
    if not isinstance(value, Tensor) or value.shape != (count,) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise MismatchError(f"the {name} of a batch is {_told(value)}; it must be a tensor of whole numbers of shape [{count}], one for each input")
    return value.long()


def real_numbers(value: object, count: int, *, meant: str) -> Tensor:
    """Return a row of finite numbers for each of `count` examples, `[N, C]`, in float32, or in float64 where they are.

    Raises:
        MismatchError: another type or shape; `meant` says what was expected.
        DataError: NaN or infinity.
    """
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != count or not value.shape[1] or value.is_complex():
        raise MismatchError(f"the label of a batch is {_told(value)}; it must be a tensor [{count}, {meant}")
    found = value if value.dtype == torch.float64 else value.float()
    if not (finite := found.isfinite().all(1)).all():
        raise DataError(f"the labels of example {int((~finite).nonzero()[0])} of a batch are not finite (NaN or infinity): mend or drop it")
    return found


def _told(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def as_batch(
    raw: object, *, input: str = "input", label: str = "label", task: str = "Classify", target: Callable[[object, int], Tensor] = whole_numbers
) -> Batch:
    """Return what a loader gave as `{"input", "label"?, "id"?}`.

    `(x, y)`, `(x,)` or `x` alone; or a mapping, whose input is the field `input`, else "input", else "pixel_values", whose labels, if any, are the field
    `label`, else "label", else "labels", and whose ids, if any, are "id". `target` reads the labels of so many examples. Other tensors keep their names, for
    teachers and objectives that read them, save `attention_mask`, which is refused: the model would never see it. `task` is the task's class, for messages.

    Raises:
        MismatchError: no such field, a field that is no tensor, or whatever `target` raises.
    """
    ids, others = None, dict[str, Tensor]()
    if isinstance(raw, Tensor):
        x, y = raw, None
    elif isinstance(raw, Mapping):
        x, y, ids = _first(raw, (input, "input", "pixel_values")), _first(raw, (label, "label", "labels")), raw.get("id")
        others = {name: value for name, value in raw.items() if isinstance(value, Tensor) and not any(value is one for one in (x, y, ids))}
        if x is None:
            raise MismatchError(f"a batch with the fields {', '.join(map(str, raw)) or '(none)'} has no input: name it, {task}(input=...)")
        if "attention_mask" in raw:
            raise MismatchError(f"the batch has an attention_mask, and {task} calls the model on its input alone: write a task of your own, or drop the mask")
    elif isinstance(raw, (tuple, list)) and 1 <= len(raw) <= 2:
        x, y = raw[0], raw[1] if len(raw) == 2 else None
    else:
        what = f"{type(raw).__name__} of {len(raw)}" if isinstance(raw, (tuple, list)) else type(raw).__name__
        raise MismatchError(f"a batch is (x, y), x, or a mapping that names its fields; this one is a {what}")
    if not isinstance(x, Tensor) or x.ndim == 0:
        raise MismatchError(f"the input of a batch is a {type(x).__name__}; it must be a tensor [N, ...]")
    found = {**others, "input": x}
    if y is not None:
        found["label"] = target(y, len(x))
    if ids is not None:
        found["id"] = whole_numbers(ids, len(x), name="id")
    return found


def as_logits(output: object, count: int, *, least: int = 2, flat: bool = False, kind: str = "classification") -> Tensor:
    """Return the logits `[N, C]` of what a model gave: a tensor, a mapping or record with `logits`, or a tuple that begins with them.

    `flat`: one number an example, `[N]`, stands for `[N, 1]`.

    Raises:
        MismatchError: none of these, or not one row of `least` logits or more for each of the `count` examples; `kind` of task is for the message.
    """
    if isinstance(output, Tensor):
        found: object = output
    elif isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, HasLogits):
        found = output.logits
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    else:
        found = None
    if not isinstance(found, Tensor):
        raise MismatchError(
            f"the model gives a {type(output).__name__} without logits; it must give a tensor, something with `logits`, or a tuple that begins with them"
        )
    if flat and found.ndim == 1:
        found = found.unsqueeze(1)
    if found.ndim != 2 or found.shape[0] != count or found.shape[1] < least:
        raise MismatchError(f"the model gives logits of shape {list(found.shape)} for {count} examples; {kind} needs [{count}, C], C of {least} or more")
    return found


def batch_count(loader: Any, split: str) -> int:
    """Return how many batches a loader has.

    Raises:
        DataError: it does not know, or it has none.
    """
    try:
        count = len(loader)
    except TypeError:
        raise DataError(
            f"the {split} loader ({type(loader).__name__}) has no length, and schedules need one: give it a __len__ that counts its batches"
        ) from None
    if not count:
        raise DataError(f"the {split} loader has no batch: its data are empty, or fewer than one batch with drop_last")
    return count


@contextmanager
def undisturbed(loader: object) -> Iterator[None]:
    """Put torch's random state back after the block, and that of the loader's own generator."""
    own = loader.generator if isinstance(loader, DataLoader) else None
    state = None if own is None else own.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if own is not None and state is not None:
            own.set_state(state)


def _distributed(loader: object) -> "DistributedSampler[Any] | None":
    if not isinstance(loader, DataLoader):
        return None
    inner = loader.batch_sampler.sampler if isinstance(loader.batch_sampler, BatchSampler) else None
    return next((sampler for sampler in (loader.sampler, inner) if isinstance(sampler, DistributedSampler)), None)


class UserLoader(Loader):
    """A user's own loader, a torch DataLoader or anything that can be iterated again and again, in limbeck's words.

    Its order and batch size are its own; `skip` draws the batches and drops them. torch's `DistributedSampler` is told the epoch and cuts the data for each
    process. Without it several processes take the batches of an evaluation split in turn, and a training split is refused: each would train on the same data.
    """

    def __init__(self, loader: Any, split: Split, read: Callable[[object], Batch], *, rank: int, world: int, device: torch.device | None) -> None:
        self._loader, self._read, self._device = loader, read, device
        self._sampler = _distributed(loader)
        self._count = batch_count(loader, split)
        self._rank, self._world = (rank, world) if self._sampler is None else (0, 1)
        if self._sampler is not None and (self._sampler.rank, self._sampler.num_replicas) != (rank, world):
            at = f"rank {self._sampler.rank} of {self._sampler.num_replicas}"
            raise MismatchError(f"the {split} loader's DistributedSampler is for {at}, and this process is {rank} of {world}: make it for that")
        if split == "train" and self._world > 1:
            raise MismatchError(f"{world} processes would train on the same data: give the training loader torch's DistributedSampler")

    def __len__(self) -> int:
        return -(-(self._count - self._rank) // self._world)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
        for raw in islice(self._loader, self._rank + skip * self._world, None, self._world):
            batch = self._read(raw)
            yield batch if self._device is None else {name: value.to(self._device) for name, value in batch.items()}
