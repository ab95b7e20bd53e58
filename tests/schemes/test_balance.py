"""After balancing, the measured shares of the gradients are the ones that were asked for."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.lookup import build
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import Linear
from limbeck.core.task import Batch
from limbeck.schemes._balance import Balance, GradientNorm
from limbeck.schemes.offline import Offline


def net(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]))


def objective(kind: str, **options: Any) -> Objective:
    return build("objectives", kind, options)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made), torch.randint(0, 3, (6,), generator=made)


SHARES = {"kd": 0.25, "supervised": 0.5, "fitnet": 3.0}


def terms() -> list[Term]:
    return [
        SHARES["kd"] * objective("response.kd"),
        SHARES["supervised"] * objective("supervised"),
        SHARES["fitnet"] * objective("feature.fitnet", layers={"0": "0"}),
    ]


def balanced(batch: Any, given: list[Any] | None = None, *, every: int = 1) -> tuple[Offline, Balance]:
    kd = Offline(net(4, 5, 3), net(4, 9, 3, seed=1), terms() if given is None else given, example=batch, balance=GradientNorm(every=every))
    assert kd.balance is not None
    return kd, kd.balance


def plainly(kd: Offline, batch: Any, kind: str) -> Tensor:
    """One objective's own mean loss, without a weight."""
    term = next(term for term in kd.terms if isinstance(term, Term) and term.name == kind)
    return Offline(kd.student, kd.teacher, [1.0 * term.objective], example=batch)(batch).loss


def norm(loss: Tensor, student: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None]).norm()


def test_the_measured_shares_are_the_asked_ones(batch: Any) -> None:
    kd, balance = balanced(batch)
    losses = kd(batch)
    own = {kind: plainly(kd, batch, kind) for kind in SHARES}
    norms = {kind: norm(loss, kd.student) for kind, loss in own.items()}
    for kind, measured in zip(SHARES, balance.norms, strict=True):
        torch.testing.assert_close(measured, norms[kind])
        torch.testing.assert_close(losses.parts[f"{kind}_gradient_norm"] / losses.count, norms[kind])
        torch.testing.assert_close(losses.parts[kind] / losses.count, own[kind].detach())
    reference = 0.5 * norms["supervised"]
    parts = {kind: 0.5 * own[kind] if kind == "supervised" else SHARES[kind] * reference * own[kind] / norms[kind] for kind in SHARES}
    for kind, part in parts.items():
        torch.testing.assert_close(norm(part, kd.student), reference * (1.0 if kind == "supervised" else SHARES[kind]))
    torch.testing.assert_close(losses.loss, sum(parts.values()))
    for ours, theirs in zip(*(torch.autograd.grad(one, list(kd.parameters())) for one in (losses.loss, sum(parts.values()))), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_norms_hold_until_they_are_measured_again_in_training(batch: Any) -> None:
    kd, balance = balanced(batch, every=3)
    before = balance.norms.clone()
    with torch.no_grad():
        kd(batch)
    kd.eval()
    kd(batch)
    assert torch.equal(balance.norms, before), "nothing is learnt, nothing is measured"
    kd.train()
    seen = []
    for _ in range(7):
        seen.append(kd(batch).parts["kd_gradient_norm"].item())
        with torch.no_grad():
            kd.student[2].weight.mul_(1.3)  # pyright: ignore[reportIndexIssue]
    assert [one == other for one, other in itertools.pairwise(seen)] == [True, True, False, True, True, False]


def test_weights_follow_their_schedules_between_measurements(batch: Any) -> None:
    kd, balance = balanced(batch, [Linear(start=1, end=0) * objective("response.kd"), Term(objective("supervised"), 2.0)], every=100)
    for done in (0.0, 2.5, 10.0):
        kd.at(done, 10)
        losses = kd(batch)
        kind, supervised = losses.parts["kd"] / 6, losses.parts["supervised"] / 6
        factor = (1 - done / 10) * 2 * balance.norms[1] / balance.norms[0]
        torch.testing.assert_close(losses.loss.detach(), factor * kind + 2 * supervised)


def test_a_state_that_is_restored_measures_when_the_first_would_have(batch: Any) -> None:
    kd, _ = balanced(batch, every=4)
    kd(batch)
    kd(batch)
    other, again = balanced(batch, every=4)
    other.load_state_dict(copy.deepcopy(kd.state_dict()))
    for one in (kd, other):
        one.student[2].weight.data.mul_(1.5)  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue, reportCallIssue]
    for _ in range(4):
        ours, theirs = kd(batch), other(batch)
        assert torch.equal(ours.loss, theirs.loss)
        assert all(torch.equal(ours.parts[name], theirs.parts[name]) for name in ours.parts)
    assert again.norms[0] != 0


def test_a_gradient_that_vanishes_is_not_scaled_up(batch: Any) -> None:
    teacher = net(4, 5, 3)
    kd = Offline(copy.deepcopy(teacher), teacher, [objective("response.kd"), objective("supervised")], example=batch, balance="gradient_norm")
    losses = kd(batch)
    torch.testing.assert_close(losses.loss.detach(), losses.parts["supervised"] / 6)


class Masked(type(build("tasks", "classify", {}))):  # pyright: ignore[reportGeneralTypeIssues]
    """Counts only the predictions of non-zero inputs."""

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        said = super().forward(model, batch)
        return Knowledge(said.outputs, said.features, batch["input"].any(-1))


def test_a_batch_without_a_supervised_gradient_leaves_the_norms(batch: Any) -> None:
    task = Masked()
    kd = Offline(net(4, 5, 3), net(4, 9, 3, seed=1), [objective("response.kd"), objective("supervised")], task, batch, balance=GradientNorm(every=1))
    assert kd.balance is not None
    kd(batch)
    before = kd.balance.norms.clone()
    assert before.all()
    losses = kd((0 * batch[0], batch[1]))
    assert torch.equal(kd.balance.norms, before) and losses.loss.item() == 0
    assert kd((batch[0] * torch.nan, batch[1])).loss.isnan() and torch.equal(kd.balance.norms, before)


def test_a_contest_s_gradient_is_held_too_and_its_opponent_s_is_not(batch: Any) -> None:
    contest = objective("adversarial.logit_discriminator", hidden=8)
    kd, balance = balanced(batch, [0.1 * contest, objective("supervised")])
    assert kd(batch, "logit_discriminator").parts.keys() == {"logit_discriminator_opponent", "logit_discriminator_accuracy"}
    assert not balance.norms.any()
    losses = kd(batch)
    reference = norm(plainly(kd, batch, "supervised"), kd.student)
    own = norm(plainly(kd, batch, "logit_discriminator"), kd.student)
    torch.testing.assert_close(losses.loss.detach(), (0.1 * reference / own * losses.parts["logit_discriminator"] + losses.parts["supervised"]) / 6)
    losses.loss.backward()
    assert all(one.grad is None for one in contest.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, None], "and there are no supervised objectives: give one, such as {kind: supervised, weight: 1}"),
        ([1.0, 0.0], "and its weight is 0: give it one"),
        ([1.0, 1.0, 1.0], "and there are 2 supervised objectives: give one"),
        ([None, 1.0], "and there is no other objective: leave balance out"),
    ],
)
def test_a_balance_without_a_measure_is_refused(given: list[float | None], message: str) -> None:
    kd, *supervised = given
    terms = [Term(objective("response.kd"), kd)] if kd is not None else []
    terms += [Term(objective("supervised"), weight) for weight in supervised if weight is not None]
    with pytest.raises(RecipeError, match="balance: gradient_norm holds every objective's gradient at a share") as caught:
        Offline(net(4, 5, 3), net(4, 9, 3), terms, balance="gradient_norm")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_says_it_by_name_or_with_options() -> None:
    def build_it(value: Any) -> Offline:
        return build("schemes", "offline", {"balance": value}, net(4, 5, 3), net(4, 9, 3), [objective("response.kd"), objective("supervised")])

    for value, every in [("gradient_norm", 20), ({"kind": "gradient_norm", "every": 5}, 5)]:
        balance = build_it(value).balance
        assert balance is not None and balance.every == every
    for wrong in ("gradient_norms", {"kind": "gradient_norm", "every": 0}, {"kind": "gradient_norm", "evry": 3}, {"kind": "norm"}):
        with pytest.raises(RecipeError, match="balance"):
            build_it(wrong)
