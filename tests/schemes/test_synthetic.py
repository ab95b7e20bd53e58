"""What data-free schemes share: who learns on what, what reaches whom, what is left, and that a run goes on exactly."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.core.errors import Interrupted, LimbeckError, MismatchError, RecipeError
from limbeck.core.events import Progress, silent
from limbeck.core.lookup import build
from limbeck.core.scheme import Scheme
from limbeck.core.task import Task
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime

SMALL = {"generator": {"latent": 5, "width": 4}, "sample": 12}
OPTIONS: dict[str, dict[str, Any]] = {
    "dafl": {**SMALL, "student_steps": 2},
    "dfad": {**SMALL, "student_steps": 2},
    "zskt": {**SMALL, "student_steps": 2, "generator_steps": 2},
    "inversion": {"rounds": 3, "student_steps": 2, "bank": 20, "sample": 12, "compete": 0.5, "shift": 1},
}
every = pytest.mark.parametrize("kind", OPTIONS)
generated = pytest.mark.parametrize("kind", ["dafl", "dfad", "zskt"])


def task(**options: Any) -> Task:
    return build("tasks", "unseen", {"in_shape": [1, 8, 8], "classes": 3, "examples": 40, **options})


def cnn(seed: int, width: int = 3) -> nn.Module:
    """A small network whose running statistics are those of some data."""
    torch.manual_seed(seed)
    made = build("models", "cnn", {"width": width}, in_shape=(1, 8, 8), classes=3)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    for _ in range(12):
        made(torch.rand(32, 1, 8, 8).square())
    for parameter in made.head.parameters():  # pyright: ignore[reportAttributeAccessIssue]
        parameter.data *= 10  # as sure of itself as a trained one
    return made


def scheme(kind: str, objectives: Any = None, *, teacher: Any = None, seed: int = 0, **options: Any) -> Scheme:
    on = task()
    teacher = cnn(1, 4) if teacher is None else teacher
    terms = [build("objectives", "response.kd", {"temperature": 1.0})] if objectives is None else objectives
    student = cnn(2)
    torch.manual_seed(seed)
    example = next(on.loader("train", batch_size=8).batches(0))
    return build("schemes", kind, {**OPTIONS[kind], **options}, student, teacher, terms, on, example, on.facts())


def batch(count: int = 8) -> dict[str, Tensor]:
    return {"input": torch.full((count, 1, 8, 8), float("nan")), "id": torch.arange(count)}


def step(made: Scheme, optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """One step as the loop takes it."""
    made.train()
    for phase in made.phases:
        losses = made(batch(), phase)
        (losses.sums[phase] / losses.count).backward()
        optimizers[phase].step()
        optimizers[phase].zero_grad()
    made.after_step()


def adams(made: Scheme) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.Adam(parameters, lr=0.01) for name, parameters in made.players().items()}


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@every
def test_players_share_nothing_and_leave_the_teacher_out(kind: str) -> None:
    teacher = cnn(1, 4)
    made = scheme(kind, teacher=teacher)
    players = made.players()
    assert list(players) == (["student"] if kind == "inversion" else ["student", "generator"]) and set(made.phases) == set(players)
    ids = [id(one) for parameters in players.values() for one in parameters]
    assert sorted(ids) == sorted(id(one) for one in made.parameters())
    assert not {id(one) for one in teacher.parameters()} & set(ids)
    assert not any("teacher" in name for name in made.state_dict())


@every
def test_a_phase_sends_a_gradient_to_its_player_alone(kind: str) -> None:
    teacher = cnn(1, 4)
    made = scheme(kind, teacher=teacher).train()
    players = made.players()
    for phase in dict.fromkeys(made.phases):
        losses = made(batch(), phase)
        assert set(losses.sums) == {phase} and float(losses.count) == 8
        losses.sums[phase].backward()
        for player, parameters in players.items():
            touched = [one.grad is not None and bool(one.grad.any()) for one in parameters]
            assert any(touched) if player == phase else not any(touched), (phase, player)
        assert all(one.grad is None for one in teacher.parameters())
        assert all(one.requires_grad for one in teacher.parameters()), "the teacher is left as it came"
        made.zero_grad()


@every
def test_steps_move_the_players_and_nothing_of_the_teacher_and_no_example_is_looked_at(kind: str) -> None:
    teacher = cnn(1, 4)
    before = state(teacher)
    made = scheme(kind, teacher=teacher)
    start = state(made)
    optimizers = adams(made)
    for _ in range(2):
        step(made, optimizers)  # on batches of NaN
    assert same(state(teacher), before) and not teacher.training
    assert all(value.isfinite().all() for value in made.state_dict().values())
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, start[name])}
    assert any(name.startswith("lessons.student") for name in moved) and any(name.startswith(("generator.", "bank")) for name in moved)


@pytest.mark.parametrize("kind", ["dfad", "zskt"])
def test_a_generators_step_leaves_the_students_running_statistics(kind: str) -> None:
    made = scheme(kind).train()
    before = state(made.shipped()["student"])
    made(batch(), "generator")
    assert same(state(made.shipped()["student"]), before)
    made(batch(), "student")
    assert not same(state(made.shipped()["student"]), before)


@every
def test_an_objective_that_reads_labels_or_ids_is_refused(kind: str) -> None:
    with pytest.raises(MismatchError, match="supervised needs labels"):
        scheme(kind, [build("objectives", "supervised", {})])
    with pytest.raises(MismatchError, match="a game of its own, and the objective logit_discriminator is another"):
        scheme(kind, [build("objectives", "adversarial.logit_discriminator", {"hidden": 4})])


@every
@pytest.mark.parametrize(
    ("teacher", "message"),
    [("ensemble", "looks through its teacher with gradients, and Ensemble gives none"), ("deaf", "gives none: teach from a trained module")],
)
def test_a_teacher_that_sends_no_gradient_is_refused(kind: str, teacher: str, message: str) -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm2d(1), nn.Linear(64, 3)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.norm(x).flatten(1))

    with pytest.raises(MismatchError, match=message):
        scheme(kind, teacher=build("teachers", "ensemble", {}, [cnn(1), cnn(3)]) if teacher == "ensemble" else Deaf())


@every
def test_no_teacher_and_no_images_are_refused(kind: str) -> None:
    terms = [build("objectives", "response.kd", {})]
    with pytest.raises(MismatchError, match="with the teacher's help, and there is none"):
        build("schemes", kind, {}, cnn(2), None, terms, task(), batch(), None)
    flat = build("tasks", "unseen", {"in_shape": [6], "classes": 3})
    mlp = [build("models", "mlp", {"widths": [4]}, in_shape=(6,), classes=3) for _ in range(2)]
    with pytest.raises(MismatchError, match=r"makes images \(C, H, W\), and the task's examples have the shape \(6,\)"):
        build("schemes", kind, {}, mlp[0], mlp[1], terms, flat, {"input": torch.zeros(4, 6)}, flat.facts())
    with pytest.raises(RecipeError, match="`example=` a batch"):
        build("schemes", kind, {}, cnn(2), cnn(1, 4), terms, task())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dafl", {"entropy": -1.0}, "entropy is -1"),
        ("dafl", {"generator": {"width": 0}}, "width"),
        ("dafl", {"layer": "haed:in"}, "no layer 'haed'; did you mean 'head'"),
        ("dfad", {"game": float("nan")}, "game is nan"),
        ("zskt", {"student_steps": 0}, "student_steps is 0"),
        ("zskt", {"game": float("inf")}, "game is inf"),
        ("inversion", {"bn": -1.0}, "bn is -1"),
        ("inversion", {"rounds": 0}, "rounds is 0"),
        ("inversion", {"lr": 0.0}, "lr is 0"),
        ("inversion", {"bank": 4}, "a bank of 4 images"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message) as caught:
        scheme(kind, **options)
    assert "\n" not in str(caught.value)


@generated
def test_a_batch_of_one_is_refused(kind: str) -> None:
    with pytest.raises(MismatchError, match="batch_size 2 or more"):
        scheme(kind)(batch(1), "generator")
    with pytest.raises(RecipeError, match="no phase 'generater'; did you mean 'generator'"):
        scheme(kind)(batch(), "generater")


@every
def test_what_is_left_is_the_same_every_time_and_says_what_the_teacher_sees(kind: str, tmp_path: Path) -> None:
    made = scheme(kind)
    step(made, adams(made))
    random = torch.get_rng_state()
    kept = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.leave(tmp_path / name)
        kept.append(load_file(tmp_path / name / "synthetic.safetensors"))
    assert torch.equal(torch.get_rng_state(), random) and same(kept[0], kept[1])
    images = kept[0]["input"]
    assert images.shape == ((8 if kind == "inversion" else 12), 1, 8, 8)
    expected = cnn(1, 4).eval()(images.float())
    assert torch.allclose(kept[0]["logits"].float(), expected, atol=0.05)


@every
def test_a_killed_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    plan = Training.model_validate({"epochs": 2, "batch_size": 8, "optimizer": {"kind": "adam", "lr": 0.01}})
    on = task()

    def run(folder: Path | None, listener: Callable[[Any], None] = silent, change: Callable[[Scheme], None] = lambda _: None) -> dict[str, Tensor]:
        made = scheme(kind)
        change(made)
        torch.manual_seed(5)
        fit(made, on, on.loader("train", batch_size=8), plan, Runtime(), work=None if folder is None else Work(folder, folder / "logs"), listener=listener)
        return dict(made.state_dict())

    def press(made: Scheme) -> None:
        """Press Ctrl-C in the third step."""
        steps, after = [0], made.after_step

        def counted() -> None:
            steps[0] += 1
            if steps[0] == 3:
                signal.raise_signal(signal.SIGINT)
            after()

        made.after_step = counted  # pyright: ignore[reportAttributeAccessIssue]

    whole = run(None)
    with pytest.raises(Interrupted, match="at step 3 of 10"):
        run(tmp_path, change=press)
    seen: list[int] = []
    resumed = run(tmp_path, lambda event: seen.append(event.step) if isinstance(event, Progress) else None)
    assert min(seen) > 3, "it went on, and did not begin anew"
    assert same(whole, resumed)
