"""One task of a sequence: another task's data, class group by class group."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Unpack
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.draw import key, permutation
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Facts, How, Loader, Sequel, Task, starts
from limbeck.core.task import Split as Part

__all__ = ["Split"]

_READ = 1024
_INNER: "WeakValueDictionary[str, Task]" = WeakValueDictionary()
"""Tasks that splits are of, by their options: the data of a sequence are held once."""


class Split(Sequel):
    """One task of a sequence, cut from another task's data by classes.

    `train` holds the classes of task `now` alone; `validation` and `test` those of every task up to it. Class c of the sequence, and so row c of a model's
    head, is the c-th class in the order of `tasks`: `tasks: [[3, 5], [0]]` makes 3 class 0, 5 class 1 and 0 class 2. A model that goes on from the task
    before has fewer rows, and grows (docs/lifelong.md). The order is in the artifact: `class_names`, and `preprocess.split` with the size of every task.

    Args:
        of: the task with all the data, its kind and its options.
        tasks: the classes of each task, by number or by name, in the order of learning.
        now: which task is being learnt, from 0; the last where it is left out.
        joint: train on every task up to `now` at once, the upper bound of a sequence.
        heads: single: one choice among all classes so far (class-incremental); multi: among the classes of the example's own task, which is known at test
            too (task-incremental). It is about the loss and the scores; what a model answers is the same.
        known: the names of the classes of earlier tasks whose data are not in `of`, task by task, as the artifact that goes on names them.

    Raises:
        RecipeError: a class twice, or one that there is not; a task that there is not; a first task of one class.
        DataError: a task without a training example, or nothing to validate or test on.
        MismatchError: data that cannot be cut by example.
    """

    def __init__(
        self,
        *,
        of: dict[str, Any],
        tasks: list[list[int | str]],
        now: int | None = None,
        joint: bool = False,
        heads: Literal["single", "multi"] = "single",
        known: Sequence[list[str]] = (),
    ) -> None:
        if "kind" not in of:
            raise RecipeError("tasks.split needs the kind of the task that it cuts: of: {kind: image, ...}")
        if not tasks or not all(tasks) or not all(known):
            raise RecipeError("tasks.split needs one class at least in every task: tasks: [[0, 1], [2, 3]]")
        at = len(tasks) - 1 if now is None else now
        if not 0 <= at < len(tasks):
            raise RecipeError(f"now is {now}, and there are {len(tasks)} tasks, 0..{len(tasks) - 1}")
        if len((known or tasks)[0]) < 2:
            raise RecipeError("the first task has one class only: a classifier needs two or more")
        self._of, self._tasks, self._now, self._joint = of, tasks, at, joint
        self._heads: Literal["single", "multi"] = heads
        self._known = [list(one) for one in known]
        self._inner = _inner(of)
        self.metric, self.higher_is_better = self._inner.metric, self._inner.higher_is_better
        self._plain: Task | None = None
        self._counts: dict[Part, int] = {}

    @cached_property
    def _order(self) -> list[list[int]]:
        """The inner task's number of every class, task by task."""
        names = self._inner.facts().class_names
        found = [[_number(one, names) for one in task] for task in self._tasks]
        flat = [one for task in found for one in task]
        if (twice := next((one for one in flat if flat.count(one) > 1), None)) is not None:
            raise RecipeError(f"class {twice} ({names[twice]}) is in `tasks` twice: every class belongs to one task")
        if also := {names[one] for one in flat} & {name for task in self._known for name in task}:
            raise RecipeError(f"class {sorted(also)[0]!r} is in `tasks` and in `known`: it belongs to one task")
        return found

    @cached_property
    def _sizes(self) -> list[int]:
        """How many classes each task so far has."""
        return [len(task) for task in (*self._known, *self._tasks[: self._now + 1])]

    def _place(self, split: Part) -> Tensor:
        """The sequence's number of each of the inner task's classes `[C]`, -1 for those that a split has not."""
        place = torch.full((self._inner.facts().classes,), -1)
        start = sum(len(task) for task in self._known)
        for number, task in enumerate(self._order[: self._now + 1]):
            if split != "train" or self._joint or number == self._now:
                place[task] = torch.arange(start, start + len(task))
            start += len(task)
        return place

    @cached_property
    def _facts(self) -> Facts:
        inner = self._inner.facts()
        if not inner.labelled:
            raise MismatchError("tasks.split cuts data by their labels, and these have none")
        seen = [inner.class_names[one] for task in self._order[: self._now + 1] for one in task]
        names = (*(name for task in self._known for name in task), *seen)
        told = {"tasks": self._sizes, "heads": self._heads, "joint": self._joint}
        examples = self._count("train")
        return replace(inner, classes=len(names), class_names=names, examples=examples, preprocess={**inner.preprocess, "split": told})

    def _count(self, split: Part) -> int:
        if split not in self._counts:
            place = self._place(split)
            whole = self._inner.loader(split, batch_size=_READ, whole=True).batches(0)
            self._counts[split] = sum(int((place[self._inner.batch(raw)["label"]] >= 0).sum()) for raw in whole)
            if not self._counts[split]:
                which = f"task {self._now}" if split == "train" and not self._joint else f"tasks 0 to {self._now}"
                raise DataError(f"the {split} split has no example of {which}, classes {', '.join(map(str, self._tasks[self._now]))}")
        return self._counts[split]

    def facts(self) -> Facts:
        return self._facts

    def fingerprint(self) -> str:
        """A digest of the inner task's own and of what is cut from it."""
        return digest({"task": "split", "of": self._inner.fingerprint(), "tasks": self._tasks, "now": self._now, "joint": self._joint, "known": self._known})

    def loader(self, split: Part, **how: Unpack[How]) -> Loader:
        count, seed, whole = self._count(split), how.get("seed", 0), split != "train" or how.get("whole", False)
        begin = starts(count, {**how, "whole": whole}, of=f"task {self._now} has {{}} training examples")
        alone: How = {**how, "batch_size": _READ, "rank": 0, "world": 1, "whole": True}
        inner = self._inner.loader(split, **alone)
        place = self._place(split).to(how.get("device") or "cpu")

        def read(epoch: int) -> dict[str, Tensor]:
            return _cut((self._inner.batch(raw) for raw in inner.batches(epoch)), place)

        return _Cut(read, begin, how["batch_size"], lambda epoch: torch.arange(count) if whole else permutation(count, key(seed, epoch)))

    def splits(self) -> tuple[Part, ...]:
        return self._inner.splits()

    def batch(self, raw: object) -> Batch:
        return self._inner.batch(raw)

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return self._inner.forward(model, batch)

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return self._inner.loss(self._heard(knowledge, batch), batch)

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        return self._inner.scores(self._heard(knowledge, batch), batch)

    def _heard(self, knowledge: Knowledge, batch: Batch) -> Knowledge:
        """What counts of the answers: all, or with several heads those about the example's own task, the others' logits at minus infinity."""
        if self._heads == "single":
            return knowledge
        said, labels = knowledge.main, batch["label"]
        sizes = torch.tensor(self._sizes)
        if said.classes != int(sizes.sum()):
            raise MismatchError(f"the model gives {said.classes} logits, and the tasks so far have {int(sizes.sum())} classes: give one for each")
        task = torch.arange(len(sizes)).repeat_interleave(sizes).to(labels.device)  # [C]
        other = task[labels].unsqueeze(-1) != task
        return replace(knowledge, outputs={**knowledge.outputs, "main": Dense(said.logits.masked_fill(other, float("-inf")), said.link)})

    def so_far(self) -> Task:
        if self._plain is None:
            of = {**self._of, "augment": []} if self._of.get("augment") else self._of
            self._plain = Split(of=of, tasks=self._tasks, now=self._now, joint=True, heads=self._heads, known=self._known)
        return self._plain


class _Cut(Loader):
    """The batches of what `read(epoch)` gives, in `order(epoch)`, `size` examples from each of `begin` on."""

    def __init__(self, read: Callable[[int], dict[str, Tensor]], begin: range, size: int, order: Callable[[int], Tensor]) -> None:
        self._read, self._begin, self._size, self._order = read, begin, size, order

    def __len__(self) -> int:
        return len(self._begin)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        fields = self._read(epoch)
        order = self._order(epoch)
        for start in self._begin[skip:]:
            rows = order[start : start + self._size]
            yield {name: values.index_select(0, rows.to(values.device)) for name, values in fields.items()}


def _inner(of: Mapping[str, Any]) -> Task:
    name = digest(dict(of))
    found = _INNER.get(name)
    if found is None:
        found = lookup.build("tasks", of["kind"], {option: value for option, value in of.items() if option != "kind"})
        assert isinstance(found, Task)
        _INNER[name] = found
    return found


def _number(told: int | str, names: Sequence[str]) -> int:
    """The number of a class that is told by number or by name."""
    if isinstance(told, str):
        if told not in names:
            raise RecipeError(f"tasks: there is no class {told!r}{did_you_mean(told, names)}")
        return names.index(told)
    if not 0 <= told < len(names):
        raise RecipeError(f"tasks: there is no class {told}: the data have {len(names)} classes, 0..{len(names) - 1}")
    return told


def _cut(batches: Iterator[Batch], place: Tensor) -> dict[str, Tensor]:
    """The examples whose class has a place, with that as their label."""
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        labels = batch["label"]
        if any(field.shape[:1] != labels.shape[:1] for field in batch.values()):
            raise MismatchError("tasks.split cuts data by example, and a batch of these has fields that are not by example")
        placed = place[labels]
        rows = (placed >= 0).nonzero().flatten()
        parts.append({**{name: field.index_select(0, rows) for name, field in batch.items()}, "label": placed[rows]})
    return {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
