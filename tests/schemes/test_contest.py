"""Offline plays a contest: its phases, who learns in which, and what the student keeps of it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.engine.loop import optimizers
from limbeck.engine.plan import Training
from limbeck.schemes._contest import LastSaid, unmoved
from limbeck.schemes.offline import Offline


def net(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.BatchNorm1d(widths[1]), nn.ReLU(), nn.Dropout(0.5), nn.Linear(widths[1], widths[2]))


def objective(kind: str, **options: Any) -> Objective:
    return build("objectives", kind, options)


def game(**options: Any) -> Objective:
    return objective("adversarial.logit_discriminator", hidden=8, **options)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made), torch.randint(0, 3, (6,), generator=made)


def scheme(batch: Any, *terms: Any, **options: Any) -> Offline:
    return Offline(net(4, 5, 3), net(4, 9, 3, seed=1), [objective("supervised"), *(terms or [0.5 * game(loss="wgan_gp", rounds=3)])], example=batch, **options)


def grads(parameters: list[nn.Parameter]) -> list[bool]:
    return [one.grad is not None and bool(one.grad.any()) for one in parameters]


def test_a_contest_has_its_rounds_before_the_student_and_is_a_player(batch: Any) -> None:
    kd = scheme(batch, game(rounds=2), objective("adversarial.feature_discriminator", layers={"2": "2"}, loss="wgan_gp"), game())
    assert kd.phases == (*["logit_discriminator"] * 2, *["feature_discriminator"] * 5, "logit_discriminator#2", "student")
    players = kd.players()
    assert list(players) == ["student", "logit_discriminator", "feature_discriminator", "logit_discriminator#2"]
    held = [id(one) for parameters in players.values() for one in parameters]
    assert sorted(held) == sorted(id(one) for one in kd.parameters())
    names = {id(one): name for name, one in kd.named_parameters()}
    assert all("discriminators" not in names[id(one)] for one in players["student"])
    assert any("projectors" in names[id(one)] for one in players["student"]), "a projector learns with the student"
    assert Offline(net(4, 5, 3), None, [objective("supervised")]).phases == ("student",)


def test_an_opponent_steps_with_an_adam_of_its_own_unless_it_is_told_otherwise(batch: Any) -> None:
    kd = scheme(batch)
    for told, kind, lr in (({}, torch.optim.Adam, 1e-4), ({"logit_discriminator": {"kind": "sgd", "lr": 0.3}}, torch.optim.SGD, 0.3)):
        made = optimizers(kd, Training.model_validate({"optimizer": {"kind": "sgd", "lr": 0.05}, "optimizers": told}))
        assert type(made["student"]) is torch.optim.SGD and made["student"].param_groups[0]["lr"] == 0.05
        assert type(made["logit_discriminator"]) is kind and made["logit_discriminator"].param_groups[0]["lr"] == lr


def test_each_phase_costs_its_own_player_alone(batch: Any) -> None:
    kd = scheme(batch)
    players = kd.players()
    losses = kd(batch, "logit_discriminator")
    assert losses.sums.keys() == {"logit_discriminator"} and losses.count.item() == 6
    assert losses.parts.keys() == {"logit_discriminator_opponent", "logit_discriminator_accuracy"}
    losses.loss.backward()
    assert not any(grads(players["student"])) and all(grads(players["logit_discriminator"])[:-1])
    kd.zero_grad()
    losses = kd(batch)
    assert losses.sums.keys() == {"student"} and losses.parts.keys() == {"supervised", "logit_discriminator"}
    torch.testing.assert_close(losses.sums["student"].detach(), losses.parts["supervised"] + 0.5 * losses.parts["logit_discriminator"])
    losses.loss.backward()
    assert any(grads(players["student"])) and all(one.grad is None for one in players["logit_discriminator"])
    assert all(one.requires_grad for one in kd.parameters())


def test_the_student_learns_from_the_discriminator_as_by_hand(batch: Any) -> None:
    kd = scheme(batch)
    student, score = copy.deepcopy(kd.student), copy.deepcopy(kd.get_submodule("terms.1.objective.discriminators.0"))
    torch.manual_seed(5)
    losses = kd(batch)
    torch.manual_seed(5)
    z = student(batch[0])
    expected = nn.functional.cross_entropy(z, batch[1]) - 0.5 * score(z).mean()
    torch.testing.assert_close(losses.loss, expected)
    ours = torch.autograd.grad(losses.loss, list(kd.student.parameters()))
    for one, other in zip(ours, torch.autograd.grad(expected, list(student.parameters())), strict=True):
        torch.testing.assert_close(one, other)


def test_in_the_opponent_s_phase_the_student_answers_as_in_training_and_its_statistics_stay(batch: Any) -> None:
    kd = scheme(batch, game())
    before = copy.deepcopy(dict(kd.student.named_buffers()))
    torch.manual_seed(5)
    cost = kd(batch, "logit_discriminator").loss
    assert all(torch.equal(value, before[name]) for name, value in kd.student.named_buffers())
    assert kd.student.training
    torch.manual_seed(5)
    z, v = kd.student(batch[0]), kd.teacher.model(batch[0])  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    score = kd.get_submodule("terms.1.objective.discriminators.0")
    torch.testing.assert_close(cost, (nn.functional.softplus(score(z)) + nn.functional.softplus(-score(v))).mean())
    kd(batch)
    assert int(kd.student[1].num_batches_tracked) == 2  # this one, and the one just above  # pyright: ignore[reportIndexIssue]


def test_statistics_come_back_when_the_student_fails() -> None:
    model = net(4, 5, 3)
    with pytest.raises(RuntimeError), unmoved(model):
        model(torch.randn(6, 4))
        model(torch.randn(6, 7))
    assert int(model[1].num_batches_tracked) == 0  # pyright: ignore[reportArgumentType]


def test_rounds_on_one_batch_ask_each_model_once_and_another_batch_or_student_asks_again(batch: Any) -> None:
    kd = scheme(batch)
    asked: list[str] = []
    kd.student.register_forward_hook(lambda *_: asked.append("student"))
    kd.teacher.model.register_forward_hook(lambda *_: asked.append("teacher"))  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    for phase in kd.phases:
        kd(batch, phase)
    assert sorted(asked) == ["student", "student", "teacher"]
    kd(batch)
    assert len(asked) == 5, "the student's phase forgets"
    for change in (
        lambda: batch,
        lambda: (batch[0].clone(), batch[1]),
        lambda: (batch[0].mul_(1), batch[1]),
        lambda: (kd.student.load_state_dict(kd.student.state_dict()), batch)[1],
        lambda: (kd.after_step(), batch)[1],
        lambda: (kd.eval(), batch)[1],
    ):
        asked.clear()
        kd(change(), "logit_discriminator")
        assert sorted(asked) == ["student", "teacher"]
    copied = copy.deepcopy(kd)
    assert torch.equal(copied(batch, "student").parts["supervised"], kd(batch, "student").parts["supervised"])


def test_what_counts_no_versions_is_not_kept() -> None:
    kept, model = LastSaid(), nn.Linear(2, 2)
    with torch.inference_mode():
        batch = {"input": torch.zeros(2)}
    kept.keep(batch, model, (None, None))  # pyright: ignore[reportArgumentType]
    assert kept.recall(batch, model) is None


def test_a_loop_of_one_s_own_moves_each_player_in_its_phase(batch: Any) -> None:
    kd = scheme(batch, game(rounds=2))
    optimizers = {name: torch.optim.Adam(parameters, lr=0.01) for name, parameters in kd.players().items()}
    for phase in kd.phases:
        before = {name: [one.detach().clone() for one in parameters] for name, parameters in kd.players().items()}
        optimizers[phase].zero_grad()
        kd(batch, phase).loss.backward()
        optimizers[phase].step()
        for name, parameters in kd.players().items():
            moved = any(not torch.equal(one, other) for one, other in zip(parameters, before[name], strict=True))
            assert moved == (name == phase)
    kd.after_step()


def test_what_a_contest_needs_is_said(batch: Any) -> None:
    unbound = Offline(net(4, 5, 3), net(4, 9, 3, seed=1), [game()])
    with pytest.raises(MismatchError, match="the opponent logit_discriminator is not built yet: give the scheme `example=` a batch"):
        unbound.players()
    with pytest.raises(MismatchError, match="which the optimizer must hold from the start"):
        unbound(batch)
    with pytest.raises(RecipeError, match="the scheme has no phase 'logit_discriminater'; did you mean 'logit_discriminator'"):
        scheme(batch)(batch, "logit_discriminater")


class Following(Objective):
    """Counts the steps that it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    needs = objective("supervised").needs  # pyright: ignore[reportAssignmentType]

    def bind(self, student: Any, teacher: Any, task: Any, facts: Any) -> None: ...

    def forward(self, student: Any, teacher: Any, batch: Any) -> Tensor:
        return student.main.logits.sum(-1)

    def after_step(self) -> None:
        self.steps += 1


def test_objectives_hear_of_every_step(batch: Any) -> None:
    follows = Following()
    kd = scheme(batch, follows)
    kd.after_step()
    assert follows.steps == 1
