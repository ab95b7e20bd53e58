"""The loop divides, clips, stops and chooses as it says; a naive loop is the judge."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError, TrainingError
from limbeck.core.events import EpochDone, Event, Note, Progress
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.lookup import find
from limbeck.core.objective import Objective
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Batch, Task
from limbeck.engine import checkpoint
from limbeck.engine.loop import LOOK_EVERY, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.teachers.frozen import Frozen

from .conftest import Trial, game, kd, mlp, supervised

STEPS = 12


def plan(**options: Any) -> Training:
    return Training.model_validate({"epochs": 1, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.1}, **options})


def taught(task: Task, training: Training) -> Trial:
    return Trial(task, training, lambda: mlp(8), lambda: mlp(24), lambda: [kd(0.7, temperature=3.0), supervised(0.3)])


WEIGHTS = [0.5, 2.0, 1.5]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_one_step_of_eight_is_two_of_four_is_eight_of_one(make_task: Callable[..., Task], weights: list[float] | None, clip: float | None) -> None:
    task = make_task(class_weight=weights)
    ends = [taught(task, plan(batch_size=8, accumulate=shares, clip=clip)).run() for shares in (1, 2, 8)]
    for weights_now, told in ends[1:]:
        for name, value in ends[0][0].items():
            torch.testing.assert_close(weights_now[name], value, rtol=1e-5, atol=1e-6)
        assert told.steps == ends[0][1].steps == 24
        for name in ("train_loss", "validation_loss", *(["gradient_norm"] if clip else [])):
            assert told.history[0][name] == pytest.approx(ends[0][1].history[0][name], rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_the_gradient_of_the_mean_loss_of_a_naive_loop(make_task: Callable[..., Task], accumulate: int) -> None:
    task = make_task(class_weight=WEIGHTS)
    trial = taught(task, plan(accumulate=accumulate, optimizer={"kind": "sgd", "lr": 0.1, "momentum": 0}, schedule={"kind": "constant"}))
    scheme = trial.scheme()
    frozen = scheme.get_submodule("teacher")
    assert isinstance(frozen, Frozen)
    student, teacher = copy.deepcopy(scheme.get_submodule("student")).double(), copy.deepcopy(frozen.model).double()
    losses = []
    for batch in task.loader("train", batch_size=16).batches(0):
        x, y = batch["input"].double(), batch["label"]
        p = F.softmax(teacher(x).detach() / 3, -1)
        loss = torch.zeros((), dtype=torch.float64)
        for row in range(16):
            z = student(x)[row]
            q = F.log_softmax(z / 3, -1)
            soft = 9 * sum(p[row, c] * (p[row, c].log() - q[c]) for c in range(3))
            loss = loss + (0.7 * soft - 0.3 * WEIGHTS[int(y[row])] * F.log_softmax(z, -1)[y[row]]) / 16
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(student.parameters(), gradients, strict=True):
                weight -= 0.1 * gradient
        losses.append(loss.item())
    reached, told = trial.run()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(reached[f"student.{name}"].double(), value, rtol=1e-4, atol=1e-6)
    assert told.history[0]["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    parts = told.history[0]["parts"]
    assert 0.7 * parts["kd"] + 0.3 * parts["supervised"] == pytest.approx(told.history[0]["train_loss"], rel=1e-5)


class Duel(Scheme):
    """Two players in two phases; each one's loss is `scale * |w|_1`, so that its gradient is `scale` in every element."""

    phases = ("loud", "quiet")

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.order: list[str] = []

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"loud": list(self.loud.parameters()), "quiet": list(self.quiet.parameters())}

    def optimizers(self) -> dict[str, Any]:
        return {}

    def forward(self, batch: object, phase: str = "student") -> Losses:
        self.order.append(phase)
        scale, player = {"loud": (100.0, self.loud), "quiet": (0.01, self.quiet)}[phase]
        count = torch.tensor(16.0)
        return Losses({phase: scale * player.weight.sum() * count}, count, {phase: player.weight.detach().sum() * count})

    def shipped(self) -> dict[str, nn.Module]:
        return {"loud": self.loud, "quiet": self.quiet}

    def after_step(self) -> None:
        self.order.append("after")


def test_each_player_steps_in_its_phase_and_is_clipped_by_its_own_norm(make_task: Callable[..., Task]) -> None:
    task = make_task(validation=0, subset=16)
    duel = Duel()
    before = copy.deepcopy(duel.state_dict())
    training = plan(clip=1.0, optimizer={"kind": "sgd", "lr": 1.0, "momentum": 0}, schedule={"kind": "constant"})
    told = fit(duel, task, task.loader("train", batch_size=16), training, Runtime(), listener=lambda _: None)
    assert told.steps == 1
    assert duel.order == ["loud", "quiet", "after"]
    moved = {name: before[name] - value for name, value in duel.state_dict().items()}
    torch.testing.assert_close(moved["loud.weight"], torch.full((2, 2), 0.5))  # of norm 200, brought to 1
    torch.testing.assert_close(moved["quiet.weight"], torch.full((2, 2), 0.01), rtol=1e-4, atol=0)  # of norm 0.02: left alone
    assert told.best.keys() == {"loud", "quiet"}


def test_the_run_s_loss_and_norm_are_the_student_s_and_an_opponent_s_are_told_by_name(make_task: Callable[..., Task]) -> None:
    trial = Trial(make_task(), plan(clip=100.0), lambda: mlp(8), lambda: mlp(24), lambda: [game(0.3, rounds=2), supervised(0.7)])
    (row,) = trial.run()[1].history
    parts = row["parts"]
    assert parts.keys() == {
        "logit_discriminator_opponent", "logit_discriminator_accuracy", "gradient_norm_logit_discriminator", "logit_discriminator", "supervised",
    }  # fmt: skip
    assert row["train_loss"] == pytest.approx(0.3 * parts["logit_discriminator"] + 0.7 * parts["supervised"], rel=1e-5)
    assert 0.5 < parts["logit_discriminator_opponent"] < 1.5  # of chance, 2 log 2, a little less
    assert row["gradient_norm"] > 0 and parts["gradient_norm_logit_discriminator"] > 0


class Silent(Duel):
    """A student and another, who has no parts to tell of."""

    phases = ("other", "student")

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"student": list(self.loud.parameters()), "other": list(self.quiet.parameters())}

    def forward(self, batch: object, phase: str = "student") -> Losses:
        player = {"student": self.loud, "other": self.quiet}[phase]
        return Losses({phase: player.weight.square().sum() * 16}, torch.tensor(16.0))


def test_a_phase_without_parts_is_told_by_its_loss_and_each_player_has_its_own_optimizer(make_task: Callable[..., Task]) -> None:
    task, scheme = make_task(validation=0, subset=16), Silent()
    before = {name: value.clone() for name, value in scheme.state_dict().items()}
    training = plan(optimizers={"other": {"kind": "sgd", "lr": 0.25, "momentum": 0}, "student": {"kind": "sgd", "lr": 0.125, "momentum": 0}})
    (row,) = fit(scheme, task, task.loader("train", batch_size=16), training, Runtime(), listener=lambda _: None).history
    torch.testing.assert_close(scheme.loud.weight.detach(), before["loud.weight"] * 0.75)
    torch.testing.assert_close(scheme.quiet.weight.detach(), before["quiet.weight"] * 0.5)
    assert row["parts"] == {"other_loss": pytest.approx(before["quiet.weight"].square().sum().item())}
    assert row["train_loss"] == pytest.approx(before["loud.weight"].square().sum().item())
    assert row["lr"] == 0.125


def test_an_optimizer_for_nobody_is_refused(make_task: Callable[..., Task]) -> None:
    with pytest.raises(RecipeError, match="optimizers names 'studnet', and nobody of that name learns; did you mean 'student'"):
        Trial(make_task(), plan(optimizers={"studnet": {"kind": "adam"}}), lambda: mlp(8)).run()


def test_bf16_mixed_computes_in_bfloat16_and_keeps_float32_weights(make_task: Callable[..., Task]) -> None:
    seen: set[torch.dtype] = set()

    def watched() -> nn.Module:
        made = mlp(8)
        made.get_submodule("layer1").register_forward_hook(lambda _module, _args, output: seen.add(output.dtype) if made.training else None)
        return made

    task = make_task()
    trial = taught(task, plan(precision="bf16-mixed", epochs=2))
    trial.student = watched
    reached, told = trial.run()
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in reached.values()} == {torch.float32}
    whole = taught(task, plan(epochs=2)).run()[1].history[-1]["train_loss"]
    assert told.history[-1]["train_loss"] != whole
    assert told.history[-1]["train_loss"] == pytest.approx(whole, rel=0.05)


def scripted(task: Task, script: list[float], *, higher: bool = True) -> Task:
    """Make the toy task say these validation metrics, one an epoch."""
    left = iter(script)
    kind = type(task)

    class Scripted(kind):  # pyright: ignore[reportGeneralTypeIssues]
        higher_is_better = higher

        def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
            return {"accuracy": torch.full(batch["label"].shape, next(left))}

    task.__class__ = Scripted
    return task


@pytest.mark.parametrize(("higher", "best"), [(True, 2), (False, 4)])
def test_the_best_epoch_s_weights_are_kept_apart_from_the_last(make_task: Callable[..., Task], tmp_path: Path, higher: bool, best: int) -> None:
    trial = Trial(scripted(make_task(), [0.5, 0.75, 0.75, 0.25, 0.5], higher=higher), plan(epochs=5), lambda: mlp(4))
    scheme = trial.scheme()
    after: list[dict[str, Tensor]] = []

    def hear(event: Event) -> None:
        if isinstance(event, EpochDone):
            after.append(copy.deepcopy(scheme.get_submodule("student").state_dict()))

    told = fit(scheme, trial.task, trial.loader(), trial.plan, Runtime(), listener=hear)
    assert told.best_epoch == best
    assert [row["validation_accuracy"] for row in told.history] == [0.5, 0.75, 0.75, 0.25, 0.5]
    for name, value in told.best["student"].items():
        assert torch.equal(value, after[best - 1][name])
    assert any(not torch.equal(value, after[-1][name]) for name, value in told.best["student"].items())


def test_among_equals_the_lower_loss_is_the_best(make_task: Callable[..., Task]) -> None:
    task = make_task()

    class Tied(type(task)):
        def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
            return {"accuracy": torch.full(batch["label"].shape, 0.5), "loss": torch.full(batch["label"].shape, next(losses))}

    task.__class__ = Tied
    losses = iter([3.0, 1.0, 2.0, 1.0])
    told = Trial(task, plan(epochs=4), lambda: mlp(4)).run()[1]
    assert told.best_epoch == 2


def test_early_stopping_counts_epochs_without_a_better_metric(make_task: Callable[..., Task]) -> None:
    task = scripted(make_task(), [0.1, 0.1, 0.2, 0.2, 0.15, 0.3, 0.9])
    told = Trial(task, plan(epochs=7, early_stopping=2), lambda: mlp(4)).run()[1]
    assert (len(told.history), told.best_epoch) == (5, 3)


def test_early_stopping_is_remembered_over_a_restart(make_task: Callable[..., Task], tmp_path: Path) -> None:
    training = plan(epochs=7, early_stopping=2)
    first = Trial(scripted(make_task(), [0.5, 0.4, 0.3, 0.9]), training, lambda: mlp(4)).run(tmp_path)[1]
    again = Trial(scripted(make_task(), [0.9]), training, lambda: mlp(4)).run(tmp_path)[1]
    assert (len(again.history), again.best_epoch) == (len(first.history), first.best_epoch) == (3, 1)


def test_without_a_validation_split_the_last_epoch_is_the_best(make_task: Callable[..., Task]) -> None:
    reached, told = Trial(make_task(validation=0), plan(epochs=3), lambda: mlp(4)).run()
    assert told.best_epoch == 3
    assert all(torch.equal(value, reached[f"student.{name}"]) for name, value in told.best["student"].items())
    assert not any(name.startswith("validation") for name in told.history[0])


def test_the_learning_rate_is_what_the_schedule_says_at_every_step(make_task: Callable[..., Task]) -> None:
    rates: list[float] = []

    class Noted(torch.optim.SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    training = plan(epochs=2, schedule={"kind": "multistep", "milestones": [1], "factor": 0.5, "warmup_epochs": 0.5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Noted)
        told = Trial(make_task(), training, lambda: mlp(4)).run()[1]
    assert rates == pytest.approx([0.1 * k / 6 for k in range(6)] + [0.1] * 6 + [0.05] * 12)
    assert [row["lr"] for row in told.history] == pytest.approx([0.1, 0.05])


def test_progress_is_told_at_every_look_with_the_mean_loss_so_far(make_task: Callable[..., Task]) -> None:
    heard: list[Event] = []
    told = Trial(make_task(), plan(epochs=2), lambda: mlp(4)).run(listener=heard.append)[1]
    steps = [(event.step, event.steps) for event in heard if isinstance(event, Progress)]
    assert steps == [(10, 24), (12, 24), (22, 24), (24, 24)]
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert last.metrics["loss"] == pytest.approx(told.history[-1]["train_loss"])
    assert not [event for event in heard if isinstance(event, Note)]


def poison(step: int) -> Callable[[int, Batch], Batch]:
    return lambda number, batch: {**batch, "input": batch["input"] * math.nan} if number == step else batch


@pytest.mark.parametrize("bad", [STEPS + 1, STEPS + 4, 2 * STEPS])
def test_a_loss_that_is_not_finite_stops_within_a_few_steps_and_leaves_the_last_good_checkpoint(
    make_task: Callable[..., Task], tmp_path: Path, bad: int
) -> None:
    trial = taught(make_task(), plan(epochs=3))
    drawn = []

    def at(number: int, batch: Batch) -> Batch:
        drawn.append(number)
        return poison(bad)(number, batch)

    with pytest.raises(TrainingError, match=rf"^kd of train is nan at step {bad}\b") as caught:
        trial.run(tmp_path, at=at)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert drawn[-1] < bad + LOOK_EVERY
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"{STEPS:08d}"
    whole, resumed = trial.run()[0], trial.run(tmp_path)[0]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Cliff(Objective):
    """A finite loss whose gradient is not a number, from call `at` on: the square root of zero."""

    def __init__(self, *, at: int = 1) -> None:
        super().__init__()
        self.left = at

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Any) -> None: ...

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        self.left -= 1
        z = student.main.logits.sum(-1) * 0
        return z.abs().sqrt() if self.left <= 0 else z


@pytest.mark.parametrize("bad", [STEPS + 4, 2 * STEPS, 3 * STEPS])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(make_task: Callable[..., Task], tmp_path: Path, bad: int) -> None:
    trial = Trial(make_task(), plan(epochs=3), lambda: mlp(8), objectives=lambda: [Cliff(at=bad), supervised()])
    with pytest.raises(TrainingError, match=rf"step ({bad}|{bad + 1})\b"):  # itself, or the loss that it breaks
        trial.run(tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"{(bad - 1) // STEPS * STEPS:08d}"


def test_a_player_with_nothing_to_learn_is_refused(make_task: Callable[..., Task]) -> None:
    with pytest.raises(MismatchError, match="player 'student' has no parameter that requires a gradient"):
        Trial(make_task(), plan(), lambda: mlp(8).requires_grad_(False)).run()


def test_more_micro_batches_than_batches_are_refused(make_task: Callable[..., Task]) -> None:
    with pytest.raises(MismatchError, match="an epoch has 12 batches, fewer than the 16 that one step accumulates"):
        trial = Trial(make_task(), plan(accumulate=16), lambda: mlp(8))
        fit(trial.scheme(), trial.task, trial.task.loader("train", batch_size=16), trial.plan, Runtime(), listener=lambda _: None)


def test_the_scheme_gets_its_modes_clock_and_following(make_task: Callable[..., Task]) -> None:
    trial = Trial(make_task(), plan(epochs=2), lambda: mlp(4, dropout=0.5), objectives=lambda: [kd(1.0)], teacher=lambda: mlp(8, dropout=0.5))
    scheme = trial.scheme()
    assert isinstance(scheme, find("schemes", "offline"))
    clocks, modes = [], []
    student, objective = scheme.get_submodule("student"), next(one for one in scheme.modules() if isinstance(one, Objective))
    student.register_forward_pre_hook(lambda module, _: (clocks.append(objective.clock.epoch), modes.append(module.training))[0] and None)
    fit(scheme, trial.task, trial.loader(), trial.plan, Runtime(), listener=lambda _: None)
    training = [clock for clock, mode in zip(clocks, modes, strict=True) if mode]
    assert training == [step / STEPS for step in range(2 * STEPS)]
    assert len(clocks) == 2 * STEPS + 2  # and one batch of validation an epoch
