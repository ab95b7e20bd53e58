"""A snapshot answers as the student did, to the bit."""

import copy

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.schedule import Clock
from limbeck.core.task import default_task
from limbeck.teachers.snapshot import Snapshot


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def step(student: nn.Module) -> None:
    """Move weights and running statistics."""
    student.train()
    student(torch.randn(8, 4))
    with torch.no_grad():
        for one in student.parameters():
            one.add_(torch.randn_like(one))


def at(teacher: Snapshot, epoch: float, batch: dict[str, Tensor]) -> Tensor:
    teacher.clock = Clock(epoch, 9)
    return teacher(batch).main.logits


@pytest.mark.parametrize("every", [None, 1, 2])
def test_it_is_the_past_student_to_the_bit(every: int | None) -> None:
    student = net()
    teacher = Snapshot(student, every=every)
    teacher.prepare(Reads(), default_task())
    batch = {"input": torch.randn(6, 4)}
    taken = copy.deepcopy(student).eval()
    for epoch in range(5):
        if every is not None and epoch % every == 0:
            taken = copy.deepcopy(student).eval()
        for third in range(3):
            assert torch.equal(at(teacher, epoch + third / 3, batch), taken(batch["input"])), (epoch, third)
            step(student)
            teacher.after_step(student)


def test_a_state_that_was_saved_within_an_epoch_is_put_back() -> None:
    student, batch = net(), {"input": torch.randn(6, 4)}
    teacher = Snapshot(student, every=1)
    teacher.prepare(Reads(), default_task())
    step(student)
    expected = at(teacher, 1.0, batch)
    step(student)
    state = copy.deepcopy(nn.ModuleDict({"student": student, "teacher": teacher}).state_dict())
    other = net()
    again = Snapshot(other, every=1)
    again.prepare(Reads(), default_task())
    nn.ModuleDict({"student": other, "teacher": again}).load_state_dict(state)
    assert torch.equal(at(again, 1.5, batch), expected)
    assert torch.equal(at(again, 2.0, batch), at(teacher, 2.0, batch))
    assert not torch.equal(at(again, 2.0, batch), expected)


def test_a_copy_of_both_follows_the_copied_student() -> None:
    student, batch = net(), {"input": torch.randn(6, 4)}
    teacher = Snapshot(student, every=1)
    teacher.prepare(Reads(), default_task())
    both = copy.deepcopy(nn.ModuleList([student, teacher]))
    other, copied = both
    assert isinstance(copied, Snapshot)
    step(other)
    assert torch.equal(at(copied, 1.0, batch), copy.deepcopy(other).eval()(batch["input"]))
    assert not any(one.requires_grad for one in copied.parameters())


def test_zero_epochs_are_refused() -> None:
    with pytest.raises(RecipeError, match="every is 0; it must be a whole number of epochs"):
        build("teachers", "snapshot", {"every": 0}, net())
