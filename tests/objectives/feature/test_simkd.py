"""`feature.simkd`: its loss, and above all what ships: the student with the projection and the teacher's classifier."""

import copy
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.models.cnn import CNN
from limbeck.objectives.feature.simkd import SimKD, simkd_loss
from limbeck.schemes.offline import Offline

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
BATCH = (torch.randn(6, 1, 16, 16), torch.arange(6) % 3)


class Flattened(nn.Module):
    """A backbone within, a pool, and a flattening by a function before the classifier."""

    def __init__(self, width: int, *, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"stem": nn.Conv2d(1, width, 3, stride, 1), "end": nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())})
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.body["end"](self.body["stem"](x))), 1))


def cnns() -> tuple[nn.Module, nn.Module]:
    return CNN((1, 16, 16), 3, width=2), CNN((1, 16, 16), 3, width=4)


def scheme(student: nn.Module, teacher: nn.Module, **options: Any) -> tuple[Offline, SimKD]:
    made = Offline(student, teacher, [SimKD(**options)], example=BATCH)
    (term,) = made.terms
    return made, cast(SimKD, term.objective)


@pytest.mark.parametrize("size", [(3, 2), (1, 1)])
def test_the_loss_equals_a_loop_value_and_gradient(size: tuple[int, int]) -> None:
    student, teacher = torch.randn(2, 2, 3, *size, dtype=torch.float64).unbind()
    student.requires_grad_()
    loss = simkd_loss(student, teacher)
    for row in range(2):
        squares = [(a - b) ** 2 for a, b in zip(student[row].flatten().tolist(), teacher[row].flatten().tolist(), strict=True)]
        assert loss[row].item() == pytest.approx(sum(squares) / len(squares), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.allclose(gradient, 2 * (student - teacher).detach() / teacher[0].numel())


@pytest.mark.parametrize("options", [{}, {"layers": {"layer3": "layer3"}, "replaces": ["pool", "head"], "head": ["pool", "head"]}])
def test_what_ships_is_student_projection_and_the_teachers_classifier(options: dict[str, Any]) -> None:
    student, teacher = cnns()
    made, simkd = scheme(student, teacher, **options)
    grafted = made.shipped()["student"].eval()
    x = BATCH[0]
    maps = cast(Any, student).layer3(cast(Any, student).layer2(cast(Any, student).layer1(x)))
    expected = cast(Any, teacher).head(cast(Any, teacher).pool(simkd.projection.eval()(maps)))
    assert torch.allclose(grafted(x), expected, rtol=1e-5)
    names = [name for name, _ in grafted.named_parameters()]
    assert [name for name in names if name.startswith("head")] == []
    mine = {id(p) for one in (student, simkd) for p in one.parameters()} | {id(p) for p in cast(Any, teacher).head.parameters()}
    assert {id(p) for p in grafted.parameters()} <= mine
    assert isinstance(cast(Any, student).pool, nn.Sequential), "the student itself keeps its own"
    assert len(cast(Any, student).pool) == 2
    assert student(x).shape == (6, 3)


def test_training_moves_what_was_grafted_and_never_the_teacher() -> None:
    student, teacher = cnns()
    made, simkd = scheme(student, teacher)
    grafted, before = made.shipped()["student"], copy.deepcopy(teacher.state_dict())
    held = {id(p) for p in made.players()["student"]}
    assert {id(p) for p in simkd.parameters()} <= held
    assert held.isdisjoint(id(p) for p in teacher.parameters())
    optimizer = torch.optim.SGD(made.players()["student"], lr=0.05)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = made(BATCH).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    again = made.shipped()["student"]
    assert torch.equal(again.eval()(BATCH[0]), grafted.eval()(BATCH[0])), "a graft made before shares all that was learnt since"
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_its_modes_export_and_rebuilding_from_skeletons() -> None:
    made, _ = scheme(*cnns())
    grafted = made.shipped()["student"]
    assert grafted.train().training
    assert grafted(BATCH[0]).shape == (6, 3)
    said = grafted.eval()(BATCH[0])
    program = torch.export.export(grafted, (BATCH[0],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.allclose(program.module()(BATCH[0][:4]), said[:4], atol=1e-6)
    other, _ = scheme(*cnns())
    skeleton = other.shipped()["student"].eval()
    assert not torch.allclose(skeleton(BATCH[0]), said)
    skeleton.load_state_dict(grafted.state_dict())
    assert torch.equal(skeleton(BATCH[0]), said)
    assert torch.equal(copy.deepcopy(grafted)(BATCH[0]), said)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_flattening_by_a_function_and_maps_of_other_sizes(stride: int) -> None:
    made, simkd = scheme(Flattened(3, stride=stride), Flattened(5))
    assert simkd.needs.student.modules == {"pool", "fc"}
    assert not any("not ship" in line for line in simkd.said)
    grafted = made.shipped()["student"].eval()
    assert grafted(BATCH[0]).shape == (6, 3)
    assert isinstance(grafted.get_submodule("fc"), nn.Identity)
    assert simkd.projection(torch.randn(2, 3, 16 // stride // 2, 16 // stride // 2)).shape == (2, 5, 4, 4)


def test_modules_within_modules_are_replaced_in_a_copy_of_the_way_there() -> None:
    student, teacher = nn.Sequential(CNN((1, 16, 16), 3, width=2), nn.Identity()), cnns()[1]
    _, simkd = scheme(student, teacher, layers={"0.layer3": "layer3"}, replaces=["0.pool", "0.head"], head=["pool", "head"])
    grafted = simkd.graft(student)
    assert cast(Any, grafted)[0] is not student[0]
    assert cast(Any, grafted)[0].layer1 is cast(Any, student)[0].layer1
    assert isinstance(student.get_submodule("0.head"), nn.Linear)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*(st.integers(1, 4),) * 4), st.tuples(*(st.integers(1, 4),) * 3), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES)
def test_every_shape_scale_and_precision_is_finite(small: tuple[int, ...], large: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    ours, theirs = (scale * torch.randn(small)).to(dtype).requires_grad_(), (scale * torch.randn(small[0], *large)).to(dtype)
    modules = {"pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "head": nn.Linear(large[0], 3)}
    student, teacher = Knowledge({}, {"s": ours}, modules=modules), Knowledge({"main": Dense(torch.zeros(small[0], 3))}, {"t": theirs}, modules=modules)
    simkd = SimKD(layers={"s": "t"}, replaces=["pool"], head=["pool", "head"])
    simkd.bind(student, teacher, cast(Task, None), None)
    check_sound(simkd(student, teacher, {}), ours)


def test_what_cannot_be_is_refused() -> None:
    named: dict[str, Any] = {"layers": {"layer3": "layer3"}, "replaces": ["pool", "head"]}
    with pytest.raises(RecipeError, match="go together"):
        SimKD(**named)
    with pytest.raises(RecipeError, match="factor is 0"):
        SimKD(factor=0)
    with pytest.raises(MismatchError, match=r"pool give \[6, 8\].*answers \[6, 3\].*lead to the answer"):
        scheme(*cnns(), **named, head=["pool"])
    with pytest.raises(MismatchError, match=r"head cannot be called.*'layer3'.*every module"):
        scheme(*cnns(), **named, head=["head"])
    with pytest.raises(RecipeError, match="no layer 'pol'; did you mean 'pool'"):
        scheme(*cnns(), layers={"layer3": "layer3"}, replaces=["pol"], head=["pool", "head"])
    with pytest.raises(MismatchError, match="not bound"):
        SimKD().graft(nn.Identity())
    with pytest.raises(MismatchError, match=r"\[2, 4, 2, 2\].*\[2, 6, 2, 2\]"):
        simkd_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 6, 2, 2))
    with pytest.raises(MismatchError, match=r"got \[6, 4\].*first of `replaces`"):
        scheme(*cnns(), layers={"layer3": "layer3"}, replaces=["head"], head=["pool", "head"])
