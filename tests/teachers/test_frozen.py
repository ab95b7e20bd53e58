"""A frozen teacher answers in eval mode and without a gradient, and is out of everybody's reach."""

import copy

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.task import default_task
from limbeck.core.teacher import as_teacher
from limbeck.teachers.frozen import Frozen


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


def ready(made: nn.Module, *features: str) -> Frozen:
    teacher = Frozen(made)
    teacher.prepare(Reads(features=frozenset(features)), default_task())
    return teacher


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {"input": torch.randn(6, 4, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("trained", ["whole", "child", "later", "child later"])
def test_it_answers_in_eval_mode_whatever_mode_it_was_put_in(batch: dict[str, torch.Tensor], trained: str) -> None:
    made = model().eval()
    expected = made(batch["input"])
    before = copy.deepcopy(made.state_dict())
    if trained == "whole":
        made.train()
    elif trained == "child":
        made[3].train()
    teacher = ready(made)
    if trained == "later":
        teacher.train()
        made.train()
    elif trained == "child later":
        teacher(batch)
        made.train()
    said = teacher(batch)
    assert torch.equal(said.main.logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_it_answers_without_a_gradient(batch: dict[str, torch.Tensor]) -> None:
    teacher = ready(model(), "1")
    said = teacher({"input": batch["input"].requires_grad_()})
    assert not said.main.logits.requires_grad and not said.feature("1").requires_grad
    assert all(weight.grad is None for weight in teacher.model.parameters())


def test_it_reads_the_features_asked_for_and_leaves_no_hook(batch: dict[str, torch.Tensor]) -> None:
    made = model().eval()
    said = ready(made, "0", "2")(batch)
    assert said.features.keys() == {"0", "2"}
    torch.testing.assert_close(said.feature("0"), made[0](batch["input"]))
    assert not any(module._forward_hooks for module in made.modules())
    with pytest.raises(RecipeError, match=r"the teacher \(Sequential\) has no layer 'layer9'"):
        ready(made, "layer9")


def test_nobody_reaches_it() -> None:
    holder = nn.ModuleList([ready(model())])
    assert not list(holder.parameters()) and not list(holder.buffers())
    assert not holder.state_dict()
    assert not any(isinstance(one, nn.Linear) for one in holder.modules())
    made = model().eval()
    nn.ModuleList([ready(made)]).train()
    assert not made.training


def test_it_moves_with_its_holder() -> None:
    teacher = ready(model())
    nn.ModuleList([teacher]).to(torch.float64)
    assert {value.dtype for value in teacher.model.state_dict().values()} == {torch.float64, torch.int64}
    nn.ModuleList([teacher]).to("meta")
    assert {value.device.type for value in teacher.model.state_dict().values()} == {"meta"}


def test_a_copy_has_a_model_of_its_own(batch: dict[str, torch.Tensor]) -> None:
    teacher = ready(model())
    copied = copy.deepcopy(nn.ModuleList([teacher]))[0]
    assert isinstance(copied, Frozen) and copied.model is not teacher.model
    expected = teacher(batch).main.logits
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.zero_()
    assert torch.equal(copied(batch).main.logits, expected)


def test_a_bare_module_is_a_frozen_teacher_and_a_teacher_stays_itself() -> None:
    made = model()
    teacher = as_teacher(made)
    assert isinstance(teacher, Frozen) and teacher.model is made
    assert as_teacher(teacher) is teacher


def test_what_it_answers_must_be_what_its_task_reads(batch: dict[str, torch.Tensor]) -> None:
    teacher = ready(nn.Linear(4, 1))
    with pytest.raises(MismatchError, match=r"logits of shape \[6, 1\] for 6 examples"):
        teacher(batch)
