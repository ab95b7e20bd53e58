"""`supervised`: the task's own loss, and nothing of the task kept in its state."""

import copy
from collections.abc import Mapping
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Facts, Task
from limbeck.objectives.supervised import Supervised


class _Weighted(nn.Module):
    """A task that is a module with a tensor of its own, as a task with class weights may be; only its loss is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([1.0, 3.0]))

    def loss(self, knowledge: Knowledge, batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(knowledge.main.logits, batch["label"], reduction="none") * self.get_buffer("weights")[batch["label"]]


NO_TASK = cast(Task, None)
FACTS = Facts(in_shape=(2,), classes=2, class_names=("a", "b"), examples=4)
STUDENT = Knowledge({"main": Dense(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))})
BATCH = {"label": torch.tensor([0, 1])}


def test_it_is_the_tasks_own_loss() -> None:
    supervised, task = Supervised(), _Weighted()
    supervised.bind(STUDENT, None, cast(Task, task), FACTS)
    assert torch.equal(supervised(STUDENT, None, BATCH), task.loss(STUDENT, BATCH))
    assert supervised(STUDENT, None, BATCH)[1].item() == pytest.approx(3 * 2.126928, rel=1e-6)


def test_the_task_is_no_part_of_it_and_is_shared_by_copies() -> None:
    supervised, task = Supervised(), _Weighted()
    supervised.bind(STUDENT, None, cast(Task, task), FACTS)
    assert list(supervised.modules()) == [supervised]
    assert not supervised.state_dict()
    task.get_buffer("weights").fill_(0.0)
    assert copy.deepcopy(supervised)(STUDENT, None, BATCH).tolist() == [0.0, 0.0], "a copy must not carry a copy of the data"


def test_it_asks_for_labels_and_for_no_teacher() -> None:
    assert Supervised().needs.labels
    assert Supervised().needs.teacher is None
    unlabelled = Facts(in_shape=(2,), classes=2, class_names=("a", "b"), examples=4, labelled=False)
    with pytest.raises(MismatchError, match="supervised needs labels"):
        Supervised().bind(STUDENT, None, NO_TASK, unlabelled)
    with pytest.raises(MismatchError, match="not bound"):
        Supervised()(STUDENT, None, BATCH)
