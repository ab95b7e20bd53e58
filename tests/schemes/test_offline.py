"""What a finished teacher's lesson costs, by hand; and what is refused before the first step."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Needs
from limbeck.core.lookup import build, find
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import Linear
from limbeck.core.task import Batch, Facts, Task
from limbeck.schemes._checks import check_runs
from limbeck.schemes.offline import Offline
from limbeck.tasks.classify import Classify


def net(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]))


def kd(**options: Any) -> Objective:
    return build("objectives", "response.kd", options)


def supervised() -> Objective:
    return build("objectives", "supervised", {})


def hint(student: str = "0", teacher: str = "0", **options: Any) -> Objective:
    return build("objectives", "fitnet", {"layers": {student: teacher}, **options})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made), torch.randint(0, 3, (6,), generator=made)


def soft(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """T^2 KL of each row `[N]`, written out."""
    p, q = (v / temperature).softmax(-1), (z / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1)


def test_the_loss_is_the_weighted_sum_by_hand(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = net(4, 5, 3), net(4, 9, 3, seed=1)
    scheme = Offline(student, teacher, [0.7 * kd(temperature=3.0), 0.3 * supervised(), 0.01 * hint(reduction="mean")], example=batch)
    projector = next(one for one in scheme.modules() if type(one).__name__ == "Projector")
    x, y = batch
    z, v = student(x), teacher(x)
    gap = projector(student[0](x)) - teacher[0](x)
    parts = {"kd": soft(z, v, 3.0), "supervised": F.cross_entropy(z, y, reduction="none"), "fitnet": gap.square().mean(-1)}
    losses = scheme(batch)
    expected = 0.7 * parts["kd"].mean() + 0.3 * parts["supervised"].mean() + 0.01 * parts["fitnet"].mean()
    torch.testing.assert_close(losses.loss, expected)
    torch.testing.assert_close(losses.sums["student"], expected * 6)
    assert losses.count.item() == 6
    assert losses.parts.keys() == parts.keys()
    for name, part in parts.items():
        torch.testing.assert_close(losses.parts[name], part.sum().detach())
        assert not losses.parts[name].requires_grad
    gradients = torch.autograd.grad(losses.loss, list(scheme.parameters()), retain_graph=True)
    by_hand = torch.autograd.grad(expected, list(scheme.parameters()))
    for ours, theirs in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(ours, theirs)
    losses.loss.backward()
    assert all(weight.grad is None for weight in teacher.parameters())


def test_players_hold_student_and_projectors_and_nothing_of_the_teacher(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = net(4, 5, 3), net(4, 9, 3, seed=1)
    student[0].weight.requires_grad_(False)
    scheme = Offline(student, teacher, [kd(), hint()], example=batch)
    held = scheme.players()["student"]
    assert {id(weight) for weight in held} == {id(one) for one in scheme.parameters()} - {id(student[0].weight)}
    assert len(held) == 3 + 2
    assert not {id(weight) for weight in teacher.parameters()} & {id(weight) for weight in scheme.parameters()}
    assert all(name.startswith(("student.", "terms.1.objective.projector")) for name in scheme.state_dict())
    assert scheme.shipped() == {"student": student}


def test_weights_and_temperatures_follow_the_clock(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = net(4, 5, 3), net(4, 9, 3, seed=1)
    scheme = Offline(student, teacher, [Term(kd(temperature=Linear(start=8, end=2)), Linear(start=1, end=0)), supervised()])
    scheme.at(2.5, 10)
    z, v = student(batch[0]), teacher(batch[0])
    expected = 0.75 * soft(z, v, 6.5).mean() + F.cross_entropy(z, batch[1])
    torch.testing.assert_close(scheme(batch).loss, expected)
    scheme.at(10, 10)
    torch.testing.assert_close(scheme(batch).loss, F.cross_entropy(z, batch[1]))


def test_two_of_a_kind_are_told_apart(batch: tuple[Tensor, Tensor]) -> None:
    scheme = Offline(net(4, 5, 3), net(4, 9, 3), [kd(temperature=1.0), kd(temperature=9.0), supervised(), kd()])
    assert list(scheme(batch).parts) == ["kd", "kd#2", "supervised", "kd#3"]


def test_a_user_s_own_loop_binds_at_the_first_batch(batch: tuple[Tensor, Tensor]) -> None:
    student = net(4, 5, 3)
    scheme = Offline(student, net(4, 9, 3, seed=1), [kd(), supervised()])
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1)
    costs = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = scheme(batch).loss
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    assert costs[-1] < costs[0]


def test_a_projector_without_an_example_is_refused_every_time(batch: tuple[Tensor, Tensor]) -> None:
    scheme = Offline(net(4, 5, 3), net(4, 9, 3, seed=1), [hint()])
    for _ in range(2):  # a cell of a notebook that is run again
        with pytest.raises(MismatchError, match="builds a projector, which the optimizer must hold from the start: give the scheme `example="):
            scheme(batch)
    scheme.bind(scheme.task.batch(batch))
    assert scheme(batch).loss > 0
    equal = Offline(net(4, 9, 3), net(4, 9, 3, seed=1), [hint()])  # no projector between equal shapes
    assert equal(batch).loss > 0


def test_binding_leaves_the_student_and_the_random_state_alone() -> None:
    student = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    student.train()
    student[2].eval()
    teacher, before, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), copy.deepcopy(student.state_dict()), torch.randn(6, 4)
    torch.manual_seed(11)
    Offline(student, teacher, [kd()], example=(x, torch.zeros(6, dtype=torch.long)))
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(11)))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training and student[1].training and not student[2].training
    assert not any(module._forward_hooks for module in student.modules())


def test_modes_come_back_when_the_student_fails(batch: tuple[Tensor, Tensor]) -> None:
    student = net(5, 5, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Offline(student, net(4, 9, 3), [kd()], example=batch)
    assert student.training


class Masked(find("tasks", "classify")):
    """Counts only the predictions that the batch's own `label` is not 9 for."""

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        said = super().forward(model, batch)
        return Knowledge(said.outputs, mask=batch["label"] != 9)

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return super().loss(knowledge, {**batch, "label": batch["label"] % 9})


def test_masked_predictions_do_not_count(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = net(4, 5, 3), net(4, 9, 3, seed=1)
    x, y = batch
    masked = torch.where(torch.tensor([True, False, False, True, True, False]), y, 9)
    keep = masked != 9

    def terms() -> list[Term]:
        return [0.5 * kd(), 0.5 * supervised(), 0.1 * hint("2", "2")]

    losses = Offline(student, teacher, terms(), task=Masked(), example=batch)((x, masked))
    expected = Offline(student, teacher, terms(), example=batch)((x[keep], y[keep]))
    torch.testing.assert_close(losses.sums["student"], expected.sums["student"])
    assert losses.count.item() == 3
    torch.testing.assert_close(losses.loss, expected.loss)
    ours = torch.autograd.grad(losses.loss, list(student.parameters()))
    theirs = torch.autograd.grad(expected.loss, list(student.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    for name, part in losses.parts.items():
        torch.testing.assert_close(part, expected.parts[name])


def test_nothing_valid_costs_nothing_and_still_has_a_graph(batch: tuple[Tensor, Tensor]) -> None:
    student = net(4, 5, 3)
    losses = Offline(student, net(4, 9, 3), [kd(), supervised()], task=Masked())((batch[0], torch.full((6,), 9)))
    assert losses.loss.item() == 0 and losses.count.item() == 0
    losses.loss.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in student.parameters())


class Batchwise(Objective):
    """The variance of the logits over the batch: a scalar."""

    batchwise = True

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None: ...

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return student.main.logits.var(0).mean()


def test_a_scalar_weighs_as_the_batch_s_count(batch: tuple[Tensor, Tensor]) -> None:
    student = net(4, 5, 3)
    losses = Offline(student, None, [2 * Batchwise()])(batch)
    torch.testing.assert_close(losses.sums["student"], 12 * student(batch[0]).var(0).mean())
    torch.testing.assert_close(losses.loss, 2 * student(batch[0]).var(0).mean())


class ByRow(Objective):
    """The mean square of a row's logits: one number per example, of however many predictions."""

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None: ...

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return student.main.logits.square().flatten(1).mean(1)


class Rows(Classify):
    """Each of three places of a row is a prediction, but those whose label is 9."""

    def batch(self, raw: Any) -> Batch:
        return {"input": raw[0], "label": raw[1]}

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return Knowledge({"main": Dense(model(batch["input"]))}, mask=batch["label"] != 9)


def test_a_loss_of_a_whole_example_counts_once_for_each_of_its_predictions() -> None:
    student = net(4, 5, 3)
    x, y = torch.randn(4, 3, 4), torch.tensor([[0, 1, 2], [0, 9, 9], [9, 9, 9], [1, 1, 9]])
    whole = Offline(student, None, [ByRow()], task=Rows())((x, y))
    by_hand = (student(x).square().flatten(1).mean(1) * torch.tensor([3.0, 1.0, 0.0, 2.0])).sum()
    torch.testing.assert_close(whole.sums["student"], by_hand)
    parts = [Offline(student, None, [ByRow()], task=Rows())((x[rows], y[rows])) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(whole.sums["student"], sum(part.sums["student"] for part in parts))


def test_a_batch_of_one_is_refused_where_examples_are_compared(batch: tuple[Tensor, Tensor]) -> None:
    one = (batch[0][:1], batch[1][:1])
    told = "the objective test_offline#2 compares the examples of a batch and the batch has one: take batch_size 2 or more"

    class Single(Batchwise):
        batchwise = False

    for gather in (False, True):
        terms = [Single(), Term(Batchwise(), gather=gather)]
        with pytest.raises(MismatchError, match=told):
            Offline(net(4, 5, 3), None, terms, example=one)
        with pytest.raises(MismatchError, match=told):
            Offline(net(4, 5, 3), None, terms)(one)
    with pytest.raises(MismatchError, match="and the batch has one"):
        Offline(net(4, 5, 3), None, [Batchwise()], task=Masked(), example=(batch[0], torch.tensor([1, 9, 9, 9, 9, 9])))
    Offline(net(4, 5, 3), None, [supervised()], example=one)


class Grafted(Batchwise):
    """An objective whose part ships with the student."""

    def graft(self, student: nn.Module) -> nn.Module:
        return nn.Sequential(student, nn.Softmax(-1))


def test_what_ships_holds_every_graft_in_order() -> None:
    student = net(4, 5, 3)
    shipped = Offline(student, None, [Grafted(), Batchwise(), Grafted()]).shipped()["student"]
    assert isinstance(shipped, nn.Sequential) and list(shipped.modules())[2] is student


def test_a_copy_is_whole_and_its_own(batch: tuple[Tensor, Tensor]) -> None:
    scheme = Offline(net(4, 5, 3), net(4, 9, 3, seed=1), [kd(), hint()], example=batch)
    expected = scheme(batch).loss.item()
    copied = copy.deepcopy(scheme)
    with torch.no_grad():
        for weight in [*scheme.parameters(), *scheme.teacher.model.parameters()]:  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            weight.zero_()
    assert copied(batch).loss.item() == pytest.approx(expected)
    assert copied.state_dict().keys() == scheme.state_dict().keys()


def test_a_scheme_moves_with_its_teacher(batch: tuple[Tensor, Tensor]) -> None:
    scheme = Offline(net(4, 5, 3), net(4, 9, 3, seed=1), [kd(), hint()], example=batch).to(torch.float64)
    assert scheme((batch[0].double(), batch[1])).loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message", "kind"),
    [
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 4), [kd()], example=x), r"3 .*4|4 .*3", MismatchError),
        (lambda x: Offline(net(4, 5, 3), None, [kd()]), "the objective kd needs a teacher, and there is none: give one, or drop the objective", MismatchError),
        (lambda x: Offline(net(4, 5, 3), None, [kd(), kd()]), "the objective kd needs a teacher", MismatchError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), []), "a scheme without objectives has nothing to learn", RecipeError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [hint("layer1")]), r"the student \(Sequential\) has no layer 'layer1'", RecipeError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [hint("0", "layer1")]), r"the teacher \(Sequential\) has no layer 'layer1'", RecipeError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [-1 * kd()]), "the weight of an objective is -1; it must be a finite", RecipeError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [math.nan * kd()]), "the weight of an objective is nan", RecipeError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [kd(temperature=0)]), "temperature is 0; it must be a finite number above zero", RecipeError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [supervised()])((x[0], x[1] + 1)), "label 3 is out of range: there are 3 classes, 0..2", DataError),
        (lambda x: Offline(net(4, 5, 3), net(4, 9, 3), [supervised()])(x[0]), "the objective supervised needs labels and the batch has none", MismatchError),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(batch: tuple[Tensor, Tensor], make: Callable[[Any], Any], message: str, kind: type[LimbeckError]) -> None:
    x = (batch[0], batch[1].clamp(min=2))
    with pytest.raises(kind, match=message) as caught:
        make(x)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_graft_that_does_not_run_is_refused_before_step_one() -> None:
    with pytest.raises(MismatchError, match=r"the student that would ship, .*, does not run \(.*4x5 and 3x2"):
        check_runs(nn.Linear(3, 2), {"input": torch.zeros(4, 5)}, Classify())


def test_a_balance_of_streamed_losses_is_refused_before_step_one() -> None:
    class Streamed(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return Hidden(input, self.weight, self.bias)

    class Heads(Classify):
        def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
            return Knowledge({"main": model(batch["input"])})

    batch = torch.randn(4, 3), torch.arange(4) % 2
    with pytest.raises(MismatchError, match=r"Streamed answers by states and a head.*leave balance out"):
        Offline(Streamed(3, 2), Streamed(3, 2), [kd(), supervised()], Heads(), batch, balance="gradient_norm")
