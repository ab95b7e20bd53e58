"""New examples together with some that are remembered.

A reservoir: Vitter, "Random sampling with a reservoir", ACM TOMS 1985; herding: Rebuffi et al., "iCaRL", CVPR 2017, arXiv:1611.07725, algorithms 4 and 5.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from limbeck.core.artifact import Artifact
from limbeck.core.ask import ask
from limbeck.core.draw import key, permutation
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

from ._memory import Memory, found, herding, ids_of, reservoir

__all__ = ["Replay"]

_ORDER, _SLOT, _DRAW = 11, 12, 13  # what a key is for
_ASKED = 256


class Replay(Transfer):
    """New examples together with some that are remembered: the memory of an earlier stage, which this stage's own takes the place of.

    A batch of B has `round(share * B)` remembered examples, each as often as the others, and new ones for the rest; an epoch passes once over the new ones.
    Without `of` there is nothing to remember yet and the batches are the task's own. The stage leaves `memory/` in its artifact: ids alone, whose
    examples a later stage finds again in its data, or the examples themselves, for when the data will be gone. Remembered examples are not augmented.

    Args:
        size: how many examples the stage remembers when it is done.
        choose: reservoir: every example seen so far with the same probability; herding: as many of each class, those whose features' mean is
            nearest to the class's, `size // classes` of them.
        share: the part of a batch that is remembered.
        logits: remember what the model said of each example when its task was done, for scheme der.
        keep: ids, or examples: the memory then holds the examples themselves, and so does whoever has the artifact.
        layer: where herding reads features, as taps name it.

    Raises:
        RecipeError: a share that leaves no room for new examples or for remembered ones, or a memory smaller than the classes.
        ArtifactError: a stage without a memory.
        MismatchError: remembered ids that are not among the data; batches with fields that a memory has not.
    """

    def __init__(
        self,
        source: Artifact | None = None,
        *,
        size: int = 500,
        choose: Literal["reservoir", "herding"] = "reservoir",
        share: float = 0.5,
        logits: bool = False,
        keep: Literal["ids", "examples"] = "ids",
        layer: str = "head:in",
    ) -> None:
        if size < 1:
            raise RecipeError(f"size is {size}; a memory holds one example at least")
        if not 0 < share < 1:
            raise RecipeError(f"share is {share:g}; it is the part of a batch that is remembered, above 0 and below 1")
        self._source, self._size, self._choose, self._share = source, size, choose, share
        self._logits, self._keep, self._layer = logits, keep, layer
        self._seed = 0
        self._recalled: tuple[Task, Memory] | None = None

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        self._seed = how.get("seed", 0)
        if self._source is None:
            return task.loader("train", **how)
        size = how["batch_size"]
        own = round(self._share * size)
        if not 0 < own < size:
            raise RecipeError(f"share {self._share:g} of a batch of {size} is {own} remembered examples and {size - own} new ones: there must be some of each")
        memory, device = self.recall(task), how.get("device")
        if not len(memory):
            raise MismatchError(f"the memory of {self._source.path} is empty")
        rows = {"input": memory.inputs, "label": memory.labels, "id": memory.ids}
        rows = rows if device is None else {name: value.to(device) for name, value in rows.items()}
        return _Mixed(task.loader("train", **{**how, "batch_size": size - own}), rows, own, self._seed, how.get("rank", 0), how.get("world", 1))

    def recall(self, task: Task) -> Memory:
        """What the earlier stage remembers, its examples found again; nothing, where there is none."""
        if self._recalled is None or self._recalled[0] is not task:
            none = torch.empty(0, dtype=torch.int64)
            empty = Memory(none, none, torch.empty(0, *task.facts().in_shape), None, 0)
            self._recalled = (task, empty if self._source is None else Memory.read(self._source, task))
        return self._recalled[1]

    def fresh(self, task: Task) -> Memory:
        """All of the task's own training examples, by ascending id."""
        ids = ids_of(task)
        inputs, labels = found(task, ids)
        return Memory(ids, labels, inputs, None, len(ids))

    def find(self, task: Task, ids: Tensor) -> Tensor:
        """The examples of these ids, `[M, ...]`."""
        return found(task, ids)[0]

    def slots(self, seen: int, count: int, with_key: int) -> Tensor:
        """Where each of `count` further examples goes in a reservoir of this size, -1 for nowhere."""
        return reservoir(seen, count, self._size, with_key)

    def remember(self, task: Task, model: nn.Module) -> Memory:
        """What is to be remembered when the task is done: of what the earlier stage remembers and of the task's own examples."""
        both = self.recall(task).and_then(self.fresh(task))
        old = len(self.recall(task))
        rows = self._by_chance(both, old) if self._choose == "reservoir" else self._by_features(both, old, task, model)
        chosen = both.take(rows)
        if not self._logits:
            return Memory(chosen.ids, chosen.labels, chosen.inputs, None, chosen.seen)
        said = torch.cat([one.main.logits.float() for one in self._ask(model, task, chosen.inputs, Reads())]).cpu()
        kept = chosen.widened(said.shape[1])
        kept[rows >= old] = said[rows >= old]
        return Memory(chosen.ids, chosen.labels, chosen.inputs, kept, chosen.seen)

    def _by_chance(self, both: Memory, old: int) -> Tensor:
        """The rows of a reservoir that goes on over the new examples in an order of their own."""
        seen, new = both.seen - (len(both) - old), len(both) - old
        if old < min(seen, self._size):
            raise RecipeError(f"a reservoir of {old} of {seen} examples cannot become one of {self._size}: what was let go is gone; size is {old} at most")
        kept = permutation(old, key(self._seed, _ORDER, 1))[: self._size].tolist() if old > self._size else list(range(old))
        order = permutation(new, key(self._seed, _ORDER, 0)) + old
        for row, slot in zip(order.tolist(), self.slots(seen, new, key(self._seed, _SLOT)).tolist(), strict=True):
            if slot == len(kept):
                kept.append(row)
            elif slot >= 0:
                kept[slot] = row
        return torch.tensor(kept, dtype=torch.int64)

    def _by_features(self, both: Memory, old: int, task: Task, model: nn.Module) -> Tensor:
        """The first exemplars of old classes, and exemplars of new ones: iCaRL's algorithms 5 and 4."""
        classes = task.facts().classes
        each = self._size // classes
        if not each:
            raise RecipeError(f"a memory of {self._size} has no room for an exemplar of each of {classes} classes: size is {classes} at least")
        fresh = torch.arange(len(both)) >= old
        chosen: list[Tensor] = []
        for label in range(classes):
            rows = (both.labels == label).nonzero().flatten()
            if fresh[rows].any():
                said = self._ask(model, task, both.inputs[rows], Reads(features=frozenset({self._layer})))
                features = torch.cat([one.feature(self._layer).flatten(1).float().cpu() for one in said])
                rows = rows[herding(features, each)]
            chosen.append(rows[:each])
        return torch.cat(chosen)

    @torch.no_grad()
    def _ask(self, model: nn.Module, task: Task, inputs: Tensor, reads: Reads) -> list[Knowledge]:
        """What the model says of examples, in eval mode."""
        modes = {module: module.training for module in model.modules()}
        device = next(model.parameters()).device
        model.eval()
        said = [ask(model, {"input": part.to(device)}, reads, task, side="student") for part in inputs.split(_ASKED)]
        for module, mode in modes.items():
            module.training = mode
        return said

    def leave(self, folder: Path, task: Task, model: nn.Module) -> None:
        self.save(folder, self.remember(task, model))

    def save(self, folder: Path, memory: Memory) -> None:
        """Write a memory into an artifact's folder, its examples where they are to be kept."""
        memory.save(folder, examples=self._keep == "examples")


class _Mixed(Loader):
    """Batches of a loader, each with `own` rows of a memory behind its own examples."""

    def __init__(self, inner: Loader, rows: Mapping[str, Tensor], own: int, seed: int, rank: int, world: int) -> None:
        self._inner, self._rows, self._own, self._seed, self._rank, self._world = inner, rows, own, seed, rank, world

    def __len__(self) -> int:
        return len(self._inner)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self._inner.batches(epoch, skip=skip), skip):
            if set(batch) != set(self._rows):
                odd = sorted(set(batch) ^ set(self._rows))[0]
                raise MismatchError(f"a batch has the fields {', '.join(batch)}, and remembered examples have input, label and id: replay cannot give {odd!r}")
            rows = self._drawn(epoch, (number * self._world + self._rank) * self._own)
            yield {name: torch.cat([batch[name], held.index_select(0, rows.to(held.device))]) for name, held in self._rows.items()}

    def _drawn(self, epoch: int, start: int) -> Tensor:
        """Rows number `start` onward of the epoch's endless order, in which each round has every row once."""
        count = len(self._rows["id"])
        places = torch.arange(start, start + self._own)
        rounds = (places // count).unique().tolist()
        orders = torch.cat([permutation(count, key(self._seed, _DRAW, epoch, one)) for one in rounds])
        return orders[places - rounds[0] * count]
