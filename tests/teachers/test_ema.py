"""The mean teacher averages the student's weights and buffers, and teaches from the average."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.task import default_task
from limbeck.schemes.offline import Offline
from limbeck.teachers.ema import EMA, follow, kept


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


def moved(student: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(torch.randn(value.shape, generator=draw).to(value.dtype) if value.is_floating_point() else 1)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_it_is_a_naive_moving_average(decay: float) -> None:
    student = net().double()
    teacher = EMA(student, decay=decay)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    for step in range(1, 8):
        moved(student, step)
        teacher.after_step(student)
        keep = min(1 - 1 / (step + 1), decay)
        for name, value in student.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value if value.is_floating_point() else value.clone()
    for name, value in teacher.average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_until_the_decay_is_reached_it_is_the_plain_mean() -> None:
    student = net().double()
    seen = [student[0].weight.detach().clone()]
    teacher = EMA(student, decay=0.9)
    for step in range(1, 6):
        moved(student, step)
        seen.append(student[0].weight.detach().clone())
        teacher.after_step(student)
    torch.testing.assert_close(teacher.average.model[0].weight, torch.stack(seen).mean(0))  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert [kept(step, 0.9) for step in (1, 2, 9, 10, 1000)] == [0.5, 1 - 1 / 3, 0.9, 0.9, 0.9]


def test_it_answers_in_eval_mode_without_a_gradient_and_learns_nothing() -> None:
    student = net()
    teacher = EMA(student)
    teacher.prepare(Reads(features=frozenset({"0"})), default_task())
    teacher.train()
    batch = {"input": torch.randn(6, 4)}
    said = teacher(batch)
    expected = copy.deepcopy(student).eval()
    assert torch.equal(said.main.logits, expected(batch["input"]))
    assert torch.equal(said.feature("0"), expected[0](batch["input"]))
    assert not said.main.logits.requires_grad
    assert not any(one.requires_grad for one in teacher.parameters())
    assert all(one.requires_grad for one in student.parameters())
    with torch.no_grad():
        student[0].weight.zero_()
    assert torch.equal(teacher(batch).main.logits, said.main.logits), "the average is a copy"


def test_a_loop_of_one_s_own_moves_it_with_every_step() -> None:
    student = net()
    kd = Offline(student, EMA(student, decay=0.5), [build("objectives", "response.kd", {}), build("objectives", "supervised", {})])
    optimizer = torch.optim.SGD([one for one in kd.parameters() if one.requires_grad], lr=0.1)
    before = copy.deepcopy(student)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    kd((x, y)).loss.backward()
    optimizer.step()
    kd.after_step()
    assert isinstance(kd.teacher, EMA)
    expected: Tensor = (before[0].weight + student[0].weight) / 2
    torch.testing.assert_close(kd.teacher.average.model[0].weight, expected)  # pyright: ignore[reportIndexIssue]
    assert len(kd.players()["student"]) == len(list(student.parameters()))


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), float("inf")])
def test_a_decay_that_cannot_be_meant_is_refused(decay: float) -> None:
    with pytest.raises(RecipeError, match="0 or more and below 1"):
        build("teachers", "ema", {"decay": decay}, net())


def test_what_cannot_be_averaged_is_refused() -> None:
    student: Any = net()
    teacher = EMA(student)
    student.add_module("more", nn.Linear(3, 3))
    with pytest.raises(MismatchError, match="other parameters than the average"):
        teacher.after_step(student)
    student = net()
    student.held = student[0](torch.randn(1, 4))  # with a graph: deepcopy refuses
    with pytest.raises(MismatchError, match="the student, Sequential, cannot be copied"):
        EMA(student)


def test_shared_weights_stay_shared() -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[1].weight = student[0].weight
    average = copy.deepcopy(student)
    with torch.no_grad():
        student[0].weight.add_(1.0)
    expected = average[0].weight + 0.25
    follow(average, student, 0.75)
    torch.testing.assert_close(average[1].weight, expected)
