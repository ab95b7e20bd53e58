"""Task after task, the old self as the teacher.

Li and Hoiem, "Learning without Forgetting", ECCV 2016, arXiv:1606.09282.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from limbeck.core import lookup
from limbeck.core.errors import RecipeError
from limbeck.core.scheme import Course

__all__ = ["Lifelong"]


class Lifelong(Course):
    """Task after task: a stage for each, which goes on with the model of the task before.

    The recipe's task is one of a sequence, `{kind: split, ...}`; stage `NAME-1` learns task 0, `NAME-2` task 1 and so on, and the last bears the name
    alone. Each begins with the model of the one before, which also is its teacher where the stage distils, and draws from what that one remembers where its
    transfer set or its scheme does. The first stage has no teacher and leaves out the objectives that need one. A stage that has `init` begins with that in the
    place of a model: a task that arrives later is a course from `first` on, in a new run, over an artifact that is given.

    Args:
        tasks: how many tasks the sequence has, as many as the task's own list of them.
        first: the task to begin with, from 0; those before it are what `init` has learnt.
        within: the scheme of each task's stage, schemes.offline where it is left out.

    Raises:
        RecipeError: no task to learn; `first` without `init`; a stage that says of its own accord who teaches it or what it draws from.
    """

    def __init__(self, *, tasks: int, first: int = 0, within: dict[str, Any] | None = None) -> None:
        if not 0 <= first < tasks:
            raise RecipeError(f"first is {first} of {tasks} tasks: it counts from 0, and one task at least must be left to learn")
        self._tasks, self._first, self._within = tasks, first, within or {"kind": "offline"}
        if "kind" not in self._within:
            raise RecipeError("within is the scheme of each task's stage, such as {kind: der, size: 500}: give its kind")

    def expand(self, name: str, stage: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        previous: str | None = stage["init"]
        if self._first and previous is None:
            raise RecipeError(f"stage {name!r} begins with task {self._first}: say what has learnt those before it, init: stage")
        for part in ("transfer", "teacher"):
            if stage.get(part) and stage[part].get("of"):
                raise RecipeError(f"stage {name!r}: {part}.of is the stage of the task before, for each task another one: leave it out")
        self._check_sizes(name, stage["transfer"])
        stages: dict[str, dict[str, Any]] = {}
        for number in range(self._first, self._tasks):
            own = name if number == self._tasks - 1 else f"{name}-{number + 1}"
            made = copy.deepcopy({**stage, "scheme": self._within})
            made["task"] = {**made["task"], "now": number}
            stages[own] = _alone(made) if previous is None else _after(made, previous)
            previous = own
        return stages

    def _check_sizes(self, name: str, transfer: Mapping[str, Any]) -> None:
        sizes = {part["size"] for part in (self._within, transfer) if "size" in part}
        if len(sizes) > 1:
            raise RecipeError(
                f"stage {name!r} has memories of {' and '.join(str(size) for size in sorted(sizes))} examples in `transfer` and `within`: give one size"
            )


def _alone(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage of a first task: nobody teaches it."""
    if stage["kind"] != "distill":
        return stage
    del stage["teacher"]
    kept = [one for one in stage["objectives"] if _needs_nobody(one)]
    return {**stage, "kind": "train", "objectives": kept or [{"kind": "supervised"}]}


def _needs_nobody(told: Mapping[str, Any]) -> bool:
    options = {key: value for key, value in told.items() if key not in ("kind", "weight", "gather", "init")}
    objective = lookup.build("objectives", told["kind"], options)
    return not objective.undecided and objective.needs.teacher is None


def _after(stage: dict[str, Any], previous: str) -> dict[str, Any]:
    """The stage of a later task: it begins with the model before, learns from it and draws from what it remembers."""
    made = {**stage, "model": None, "init": previous}
    if "teacher" in stage:
        made["teacher"] = {**stage["teacher"], "of": previous}
    for field, slot in (("transfer", "transfer"), ("scheme", "schemes")):
        if "source" in inspect.signature(lookup.find(slot, stage[field]["kind"])).parameters:
            made[field] = {**stage[field], "of": previous}
    return made
