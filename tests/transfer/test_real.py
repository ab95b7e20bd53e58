"""The real transfer set is the training split, as the task gives it."""

from typing import Any

import torch

from limbeck.core.lookup import build
from limbeck.core.task import Task


class Noting:
    """Stands for a task; notes how it is asked for a loader."""

    def loader(self, *args: Any, **how: Any) -> tuple[Any, dict[str, Any]]:
        return args, how


def test_it_is_the_training_split_asked_for_as_the_loop_asks() -> None:
    task: Any = Noting()
    how = {"batch_size": 4, "seed": 3, "rank": 1, "world": 2, "device": torch.device("cpu")}
    assert build("transfer", "real", {}).loader(task, **how) == (("train",), how)


def test_it_gives_the_task_s_batches() -> None:
    task: Task = build("tasks", "image", {"data": "digits", "subset": 20})
    ours = list(build("transfer", "real", {}).loader(task, batch_size=10, seed=5).batches(2))
    theirs = list(task.loader("train", batch_size=10, seed=5).batches(2))
    assert len(ours) == 2
    assert all(torch.equal(one[name], other[name]) for one, other in zip(ours, theirs, strict=True) for name in one)
