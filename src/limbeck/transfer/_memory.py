"""A memory of examples: how it lies in an artifact, how its examples are found again, which are chosen.

Shapes: M examples remembered, C classes, D numbers in a feature.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.core.artifact import Artifact
from limbeck.core.draw import bits
from limbeck.core.errors import ArtifactError, MismatchError
from limbeck.core.files import read_json, write_json
from limbeck.core.task import Batch, Sequel, Task

__all__ = ["Memory", "found", "herding", "ids_of", "reservoir"]

_READ = 1024


@dataclass(frozen=True)
class Memory:
    """What is remembered: `ids` and `labels` `[M]`, `inputs [M, ...]`, `logits [M, C]` or None, NaN where none was kept; of `seen` examples."""

    ids: Tensor
    labels: Tensor
    inputs: Tensor
    logits: Tensor | None
    seen: int

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> "Memory":
        """Some of it, in the order of `rows`."""
        return Memory(self.ids[rows], self.labels[rows], self.inputs[rows], None if self.logits is None else self.logits[rows], self.seen)

    def and_then(self, other: "Memory") -> "Memory":
        """This and another, of all that both have seen."""
        wide = max((one.logits.shape[1] for one in (self, other) if one.logits is not None), default=0)
        ids, labels, inputs = (torch.cat([getattr(self, name), getattr(other, name)]) for name in ("ids", "labels", "inputs"))
        return Memory(ids, labels, inputs, torch.cat([self.widened(wide), other.widened(wide)]) if wide else None, self.seen + other.seen)

    def widened(self, classes: int) -> Tensor:
        """The logits `[M, classes]`, NaN for what was not kept."""
        wide = torch.full((len(self), classes), float("nan"))
        if self.logits is not None:
            wide[:, : self.logits.shape[1]] = self.logits
        return wide

    def save(self, folder: Path, *, examples: bool) -> None:
        """Write `memory/` into an artifact's folder: ids, labels and logits, and the examples themselves where they are to be kept."""
        place = folder / "memory"
        place.mkdir()
        held = {"ids": self.ids, "labels": self.labels}
        held |= {} if self.logits is None else {"logits": self.logits}
        held |= {"inputs": self.inputs} if examples else {}
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in held.items()}, place / "memory.safetensors")
        write_json(place / "memory.json", {"examples": len(self), "seen": self.seen, "keep": "examples" if examples else "ids"})

    @classmethod
    def read(cls, source: Artifact, task: Task) -> "Memory":
        """Read what an artifact remembers; examples that it holds by id alone are found again among the task's.

        Raises:
            ArtifactError: it remembers nothing, or its memory is damaged.
            MismatchError: examples that the task has not, or has under another label, or of another shape.
        """
        place = source.path / "memory"
        if not place.is_dir():
            raise ArtifactError(f"{source.path} has no memory: the stage that made it must leave one, transfer: {{kind: replay}} or scheme: {{kind: der}}")
        told = read_json(place / "memory.json")
        try:
            held = load_file(place / "memory.safetensors")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{place / 'memory.safetensors'} cannot be read ({error}): it is damaged; make {source.path} again") from None
        inputs = held.get("inputs")
        if inputs is None:
            inputs, labels = found(task, held["ids"])
            if wrong := int((labels != held["labels"]).sum()):
                raise MismatchError(
                    f"{wrong} of the {len(labels)} examples that {source.path} remembers by id have another label in this task: its data are others; "
                    "give the data that it was trained on, or let that stage remember the examples themselves (keep: examples)"
                )
        if inputs.shape[1:] != task.facts().in_shape:
            raise MismatchError(f"{source.path} remembers examples of shape {list(inputs.shape[1:])}, and the task's are {list(task.facts().in_shape)}")
        return cls(held["ids"], held["labels"], inputs, held.get("logits"), told["seen"])


def _batch(task: Task, raw: object) -> Batch:
    batch = task.batch(raw)
    if missing := {"id", "label", "input"} - set(batch):
        raise MismatchError(f"a memory needs the fields id, label and input of a batch, and {sorted(missing)[0]} is not there")
    return batch


def ids_of(task: Task) -> Tensor:
    """The ids of all training examples of a task, in ascending order."""
    return torch.cat([_batch(task, raw)["id"].cpu() for raw in task.loader("train", batch_size=_READ, whole=True).batches(0)]).sort().values


def found(task: Task, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Find training examples again by id: inputs `[M, ...]` and labels `[M]`, in the order of `ids [M]`.

    Of a sequence, among all that it has taught so far and without augmentation; of another task, one draw of it.

    Raises:
        MismatchError: ids that are not there.
    """
    past = task.so_far() if isinstance(task, Sequel) else task
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for raw in past.loader("train", batch_size=_READ, whole=True).batches(0):
        batch = _batch(past, raw)
        rows = torch.isin(batch["id"], ids).nonzero().flatten()
        parts.append((batch["id"][rows], batch["input"][rows], batch["label"][rows]))
    own, inputs, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    own, order = own.sort()
    if missing := int((~torch.isin(ids, own)).sum()):
        raise MismatchError(
            f"{missing} of the {len(ids)} examples that are remembered by id are not among the training data: give the data that the earlier tasks were "
            "trained on, or remember the examples themselves (keep: examples)"
        )
    rows = order[torch.searchsorted(own, ids)]
    return inputs[rows], labels[rows]


def reservoir(seen: int, count: int, size: int, with_key: int) -> Tensor:
    """Return the slot of each of `count` further examples `[count]` after `seen`, -1 for those that are not kept.

    Example n, counted from 0, takes slot n while there is room; later ones draw k from 0..n and take slot k where k < size. Taken in order, each example seen
    is kept with the same probability: Vitter, "Random sampling with a reservoir", ACM TOMS 1985, algorithm R.

    >>> reservoir(0, 3, 4, 0)
    tensor([0, 1, 2])
    """
    numbers = torch.arange(seen, seen + count)
    drawn = ((bits(numbers, with_key) & 0xFFFFFFFF) * (numbers + 1)) >> 32
    slots = torch.where(numbers < size, numbers, drawn)
    return torch.where(slots < size, slots, -1)


def herding(features: Tensor, count: int) -> Tensor:
    """Return the `count` rows whose mean stays nearest to the mean of all, the best first; all rows, where there are fewer.

    `p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k ||` over the rows that are not chosen yet; the features `[N, D]` and mu brought to length one.
    Rebuffi et al., "iCaRL", CVPR 2017, arXiv:1611.07725, algorithm 4; after Welling, "Herding dynamical weights to learn", ICML 2009.
    """
    rows = F.normalize(features.double(), dim=1)
    mean = F.normalize(rows.mean(0), dim=0)
    chosen: list[int] = []
    total, taken = torch.zeros_like(mean), torch.zeros(len(rows), dtype=torch.bool)
    for k in range(1, min(count, len(rows)) + 1):
        distance = (mean - (rows + total) / k).square().sum(1)
        best = int(distance.masked_fill(taken, float("inf")).argmin())
        chosen.append(best)
        total, taken[best] = total + rows[best], True
    return torch.tensor(chosen, dtype=torch.int64)
