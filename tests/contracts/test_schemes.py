"""Every scheme, found in its folder: who learns when, what ships, what is saved, and that a resumed training is the uninterrupted one.

A scheme that steps needs a row in `STEPPING`: a small example of it. A scheme over time needs a row in `OVER_TIME`: a stage of a recipe that names it. Both are
found in the folder; a missing row fails one test, which says how to add it.
"""

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.watched import Killed, Watched, kill, press
from torch import Tensor, nn

from limbeck.core.artifact import Artifact
from limbeck.core.errors import Interrupted
from limbeck.core.events import Event, silent
from limbeck.core.lookup import build, find, names
from limbeck.core.scheme import Course, Scheme
from limbeck.core.task import Batch, Loader, Task
from limbeck.core.teacher import Teacher
from limbeck.engine.loop import Fit, Work, fit, optimizers
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.pipeline.recipe import load_recipe
from limbeck.schemes import _exchange

PLAN = Training.model_validate({"epochs": 2, "batch_size": 16, "optimizer": {"kind": "adam", "lr": 0.01}, "clip": 1.0})
BATCHES = 12  # of an epoch
KD = {"kind": "response.kd", "temperature": 2.0, "weight": 0.7}
SUPERVISED = {"kind": "supervised"}
TINY = {"latent": 8, "width": 4}


@dataclass(frozen=True)
class Stepping:
    """A small example of a scheme that steps.

    `options` of the scheme, or how to make them in a folder; `objectives` as a recipe writes them; `teacher` and `transfer` likewise, the teacher of a frozen
    CNN where it asks for a model; `student` as a recipe writes a model; `source`, which makes in a folder the artifact that the scheme draws from.
    `task` as a recipe writes it, of three classes and 192 training examples, where the scheme is not for images.
    `teaches` is the model of a frozen teacher as a recipe writes it, and `answers` how many classes there are, where the scheme is not for images.
    `still` says which parameters of a phase's player get no gradient, by the beginnings of their names.
    """

    options: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
    objectives: tuple[Mapping[str, Any], ...] = (KD, SUPERVISED)
    teacher: Mapping[str, Any] | None = None
    transfer: Mapping[str, Any] | None = None
    student: Mapping[str, Any] | None = None
    source: Callable[[Path], Artifact] | None = None
    still: tuple[str, ...] = ()
    task: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None = None
    teaches: Mapping[str, Any] | None = None
    answers: int = 3


@dataclass(frozen=True)
class OverTime:
    """A small example of a scheme over time: its options, and what else its stage says; `earlier` are stages of a recipe above it."""

    options: Mapping[str, Any]
    stage: Mapping[str, Any]
    earlier: Mapping[str, Mapping[str, Any]]


def codistilling(folder: Path) -> Mapping[str, Any]:
    """A peer that has left its weights once, some steps into the training."""
    torch.manual_seed(5)
    _exchange.leave(_exchange.place(folder / "shared", "b"), student(STEPPING["codistillation"]), 7)
    return {"folder": str(folder / "shared"), "name": "a", "peers": ["b", "c"], "every": 5, "patience": 2}


def sums(folder: Path) -> Mapping[str, Any]:
    """Prompts and completions, 192 to train on."""
    lines = [{"prompt": f"{at % 9}+{at % 7}=", "completion": str(at % 9 + at % 7)} for at in range(240)]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    told = {"tokenizer": {"kind": "bytes"}, "context": 8, "packing": "padded", "validation": 0.2, "test": 0}
    return {"kind": "language", "data": "jsonl", "root": str(folder / "sums.jsonl"), **told}


def writing(options: Mapping[str, Any], objectives: tuple[Mapping[str, Any], ...]) -> Stepping:
    """A student that writes, of a scheme for language models."""
    small, large = {"kind": "gpt", "dim": 8, "depth": 1, "heads": 2, "dropout": 0.1}, {"kind": "gpt", "dim": 12, "depth": 1, "heads": 2}
    return Stepping(options, objectives, {"kind": "frozen"}, student=small, task=sums, teaches=large, answers=257)


STEPPING: dict[str, Stepping] = {
    "offline": Stepping({}, (KD, {"kind": "adversarial.logit_discriminator", "hidden": 8, "loss": "wgan_gp", "rounds": 2}, SUPERVISED), {"kind": "frozen"}),
    "mutual": Stepping({"peers": [{"kind": "cnn", "width": 3}, {"kind": "mlp", "widths": [6]}]}),
    "one": Stepping({"split": "layer1", "branches": 3}),
    "codistillation": Stepping(codistilling),
    "dense": Stepping({"drop": 0.5}, (KD, SUPERVISED), {"kind": "ensemble"}),
    "progressive": Stepping({"alpha": 0.6}, (SUPERVISED,)),
    "exits": Stepping({}, (KD, SUPERVISED), {"kind": "exits"}, student={"kind": "exits", "of": {"kind": "cnn", "width": 4}, "at": ["layer1", "layer2"]}),
    "der": Stepping({"size": 20, "batch": 8}, (SUPERVISED,)),
    "icarl": Stepping({"size": 12}, (KD, SUPERVISED), {"kind": "frozen"}),
    "dafl": Stepping({"generator": TINY, "game": 0.5, "bn": 0.1}, (KD,), {"kind": "frozen"}),
    "dfad": Stepping({"generator": TINY, "student_steps": 2}, (KD,), {"kind": "frozen"}),
    "zskt": Stepping({"generator": TINY, "student_steps": 2}, (KD,), {"kind": "frozen"}),
    "chunker": Stepping(
        {}, (SUPERVISED,), student={"kind": "recurrent", "width": 4}, task={"kind": "lag", "lag": 1, "examples": 192, "validation": 48, "test": 60}
    ),
    "minillm": writing({"alpha": 0.3, "tokens": 3}, (SUPERVISED,)),
    "on_policy": writing({"share": 0.5}, ({"kind": "response.divergence", "divergence": "jsd"}, SUPERVISED)),
    "inversion": Stepping({"rounds": 3, "student_steps": 2, "bank": 64}, (KD,), {"kind": "frozen"}),
}
PLAIN = {"kind": "train", "model": {"kind": "mlp", "widths": [8]}, "epochs": 2}
TAUGHT = {**PLAIN, "kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}}
SPLIT = {"kind": "split", "of": {"kind": "image", "data": "digits", "subset": 256}, "tasks": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}
LARGE = {"teacher": {**PLAIN, "model": {"kind": "mlp", "widths": [64]}}}
OVER_TIME: dict[str, OverTime] = {
    "born_again": OverTime({"generations": 2}, TAUGHT, LARGE),
    "assistants": OverTime({"option": "widths", "count": 2}, TAUGHT, LARGE),
    "lifelong": OverTime({"tasks": 2}, {**PLAIN, "task": SPLIT}, {}),
    "bco": OverTime({}, PLAIN, {}),
    "iterative": OverTime({"method": "prune.weights", "to": 0.9, "rounds": 2}, {**PLAIN, "model": None, "init": "teacher"}, LARGE),
}


def kinds(base: type) -> list[str]:
    return [kind for kind in names("schemes") if inspect.isclass(part := find("schemes", kind)) and issubclass(part, base)]


def test_every_scheme_has_its_small_example() -> None:
    missing = sorted(set(kinds(Scheme)) - STEPPING.keys()), sorted(set(kinds(Course)) - OVER_TIME.keys())
    how = "add to STEPPING a line `name: Stepping(options, objectives, teacher)`", "add to OVER_TIME a line `name: OverTime(options, stage, earlier)`"
    told = [f"{way} for {', '.join(found)}" for found, way in zip(missing, how, strict=True) if found]
    assert not told, f"schemes without an example: {'; '.join(told)} (tests/contracts/test_schemes.py)"
    gone = sorted((STEPPING.keys() | OVER_TIME.keys()) - set(names("schemes")))
    assert not gone, f"examples without a scheme: {', '.join(gone)}"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Three classes of 6x6 images: 192 to train on, 48 to validate on."""
    made = np.random.default_rng(0)
    labels = made.integers(0, 3, 300)
    images = (made.normal(size=(300, 6, 6)) + 0.5 * labels[:, None, None]).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=images[:240], y_train=labels[:240], x_test=images[240:], y_test=labels[240:])
    return build("tasks", "image", {"data": "npz", "root": str(path), "validation": 0.2, "augment": [{"kind": "shift", "pixels": 1}]})


def model(told: Mapping[str, Any], in_shape: tuple[int, ...] = (1, 6, 6), classes: int = 3) -> nn.Module:
    return build("models", told["kind"], {key: value for key, value in told.items() if key != "kind"}, in_shape=in_shape, classes=classes)


def student(row: Stepping, in_shape: tuple[int, ...] = (1, 6, 6)) -> nn.Module:
    return model(row.student or {"kind": "cnn", "width": 4}, in_shape, row.answers)


def part(slot: str, told: Mapping[str, Any], *args: Any) -> Any:
    return build(slot, told["kind"], {key: value for key, value in told.items() if key not in ("kind", "weight")}, *args)


@dataclass
class Example:
    """A row come to life: what assembly would make of it, from a seed."""

    kind: str
    row: Stepping
    task: Task
    folder: Path

    def loader(self) -> Loader:
        drawn: Any = self.task if self.row.transfer is None else part("transfer", self.row.transfer)
        how: dict[str, Any] = {"batch_size": PLAN.batch_size, "seed": 0}
        return self.task.loader("train", **how) if self.row.transfer is None else drawn.loader(self.task, **how)

    def scheme(self) -> Scheme:
        torch.manual_seed(0)
        learner = student(self.row, self.task.facts().in_shape)
        teacher = None if self.row.teacher is None else self._teacher(learner)
        terms = [one.get("weight", 1.0) * part("objectives", one) for one in self.row.objectives]
        options = self.row.options(self.folder) if callable(self.row.options) else self.row.options
        source = {} if self.row.source is None else {"source": self.row.source(self.folder)}
        example = next(iter(self.loader().batches(0)))
        return build("schemes", self.kind, options, learner, teacher, terms, self.task, example, self.task.facts(), **source)

    def _teacher(self, learner: nn.Module) -> Teacher:
        assert self.row.teacher is not None
        wise = model({"kind": "cnn", "width": 6}) if self.row.teaches is None else model(self.row.teaches, self.task.facts().in_shape, self.row.answers)
        given = {"model": wise, "models": [model({"kind": "cnn", "width": 6}), model({"kind": "mlp"})], "student": learner}
        asked = inspect.signature(find("teachers", self.row.teacher["kind"])).parameters
        return part("teachers", self.row.teacher, *(value for name, value in given.items() if name in asked))

    def run(self, loader: Loader, folder: Path | None, listener: Callable[[Event], None] = silent) -> tuple[Scheme, Fit]:
        scheme = self.scheme()
        torch.manual_seed(1)
        work = None if folder is None else Work(folder, folder / "logs")
        return scheme, fit(scheme, self.task, loader, PLAN, Runtime(), work=work, listener=listener)


stepping = pytest.mark.parametrize("kind", STEPPING)


@pytest.fixture
def example(kind: str, task: Task, tmp_path: Path) -> Example:
    row = STEPPING[kind]
    told = row.task(tmp_path) if callable(row.task) else row.task
    return Example(kind, row, task if told is None else part("tasks", told), tmp_path)


def batch_of(example: Example) -> Batch:
    return next(iter(example.loader().batches(0)))


def ready(example: Example) -> Scheme:
    """A scheme some steps into its training, so that peers were heard and buffers have something in them."""
    scheme = example.scheme()
    steppers = optimizers(scheme, PLAN)
    for batch, _ in zip(example.loader().batches(0), range(6), strict=False):
        scheme.at(0.5, PLAN.epochs)
        for phase in scheme.phases:
            losses = scheme(batch, phase)
            (losses.sums[phase] / losses.count.clamp(min=1)).backward()
            steppers[phase].step()
            steppers[phase].zero_grad(set_to_none=True)
        scheme.after_step()
    return scheme


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names under which two states differ."""
    return [name for name in one.keys() | other.keys() if name not in one or name not in other or not torch.equal(one[name], other[name])]


@stepping
def test_each_phase_has_a_player_and_each_parameter_one(example: Example) -> None:
    scheme = example.scheme()
    players = scheme.players()
    assert players.keys() == set(scheme.phases) and all(players.values())
    held = [id(one) for several in players.values() for one in several]
    assert len(held) == len(set(held)), "a parameter that two players step"
    assert {id(one) for one in scheme.parameters() if one.requires_grad} == set(held), "what learns is some player's, and nothing else is"
    assert scheme.optimizers().keys() <= players.keys()


@stepping
def test_a_phase_costs_its_own_player_alone_and_all_of_it(example: Example) -> None:
    scheme = ready(example)
    players, names = scheme.players(), {id(one): name for name, one in scheme.named_parameters()}
    batch = batch_of(example)
    for phase in dict.fromkeys(scheme.phases):
        losses = scheme(batch, phase)
        assert losses.sums.keys() == {phase} and losses.count > 0
        assert all(value.isfinite().all() for value in [losses.sums[phase], *losses.parts.values()])
        assert not any(part.requires_grad for part in losses.parts.values())
        losses.sums[phase].backward()
        idle = [names[id(one)] for one in players[phase] if one.grad is None]
        assert [name for name in idle if not name.startswith(example.row.still)] == []
        reached = [name for name, one in scheme.named_parameters() if one.grad is not None and not any(one is own for own in players[phase])]
        assert reached == [], f"the phase {phase} sends a gradient to another player"
        scheme.zero_grad(set_to_none=True)


@stepping
def test_no_gradient_comes_to_a_teacher(example: Example) -> None:
    scheme = ready(example)
    teachers = [module for module in scheme.modules() if isinstance(module, Teacher)]
    held = [value for teacher in teachers for inner in [teacher, *models_of(teacher)] for value in inner.parameters()]
    learning = {id(one) for several in scheme.players().values() for one in several}
    before = [value.detach().clone() for value in held if id(value) not in learning]
    for phase in scheme.phases:
        scheme(batch_of(example), phase).sums[phase].backward()
    still = [value for value in held if id(value) not in learning]
    assert all(value.grad is None and torch.equal(value, old) for value, old in zip(still, before, strict=True))


def models_of(teacher: Teacher) -> list[nn.Module]:
    """What a teacher holds outside the module tree."""
    held = [one for value in vars(teacher).values() if isinstance(value, (tuple, list)) for one in value]
    return [one for one in held if isinstance(one, nn.Module)]


@stepping
def test_what_ships_runs_alone_and_the_student_is_among_it(example: Example) -> None:
    scheme = ready(example)
    shipped = scheme.shipped()
    assert "student" in shipped and scheme.specs().keys() <= shipped.keys() - {"student"}
    batch = batch_of(example)
    expected = {}
    for player, module in shipped.items():
        alone = copy.deepcopy(module).eval()
        expected[player] = example.task.forward(alone, batch).main.logits
        assert expected[player].shape[0] == PLAN.batch_size and expected[player].shape[-1] == example.row.answers
        assert expected[player].isfinite().all()
    fresh = example.scheme()
    for player, module in fresh.shipped().items():
        module.load_state_dict(shipped[player].state_dict())
        found = example.task.forward(module.eval(), batch).main.logits
        torch.testing.assert_close(found, expected[player], msg=f"{player}: the weights that ship do not say all of it")


@stepping
def test_the_state_says_all_of_it(example: Example) -> None:
    scheme = ready(example)
    state = copy.deepcopy(dict(scheme.state_dict()))
    assert all(isinstance(value, Tensor) for value in state.values()), "a checkpoint keeps tensors: get_extra_state gives one"
    fresh = example.scheme()
    fresh.load_state_dict(state)
    assert same(dict(fresh.state_dict()), state) == []
    assert costs(fresh, example) == costs(scheme, example)


def costs(scheme: Scheme, example: Example) -> list[tuple[float, list[float]]]:
    """What the next steps cost a scheme in training mode, its random draws set; a copy takes them."""
    moving = copy.deepcopy(scheme).train()
    steppers = optimizers(moving, PLAN)
    torch.manual_seed(3)
    told = []
    for batch, _ in zip(example.loader().batches(1), range(3), strict=False):
        moving.at(1.0, PLAN.epochs)
        for phase in moving.phases:
            losses = moving(batch, phase)
            losses.sums[phase].backward()
            told.append((losses.sums[phase].item(), [part.item() for part in losses.parts.values()]))
            steppers[phase].step()
            steppers[phase].zero_grad()
        moving.after_step()
    return told


@stepping
def test_a_deep_copy_is_a_scheme_of_its_own(example: Example) -> None:
    scheme = ready(example)
    before = copy.deepcopy(dict(scheme.state_dict()))
    assert costs(scheme, example) == costs(copy.deepcopy(scheme), example)
    assert same(dict(scheme.state_dict()), before) == [], "training a copy moved the original"


@stepping
def test_killed_and_resumed_it_is_the_uninterrupted_training_to_the_bit(example: Example, tmp_path: Path) -> None:
    whole, told = example.run(example.loader(), None)
    work = tmp_path / "work"
    with pytest.raises(Interrupted):
        example.run(Watched(example.loader(), press(7)), work)
    with pytest.raises(Killed):
        example.run(Watched(example.loader(), kill(8)), work)  # into the second epoch: back to the checkpoint at the end of the first
    resumed, retold = example.run(example.loader(), work)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict())) == []
    assert retold.history == told.history
    for player, weights in told.best.items():
        assert same(weights, retold.best[player]) == []


@pytest.mark.parametrize("kind", OVER_TIME)
def test_a_scheme_over_time_comes_to_stages_that_are_stages(kind: str) -> None:
    row = OVER_TIME[kind]
    stage = {**row.stage, "scheme": {"kind": kind, **row.options}}
    recipe = load_recipe({"name": "toy", "task": {"kind": "image", "data": "digits", "subset": 256}, "stages": {**row.earlier, "student": stage}})
    made = [name for name in recipe.stages if name not in row.earlier]
    assert made[-1] == "student" and all(name.startswith("student-") for name in made[:-1])
    assert not any(getattr(one, "scheme", None) is not None and one.scheme.kind in OVER_TIME for one in recipe.stages.values())  # pyright: ignore[reportAttributeAccessIssue]
    assert load_recipe(recipe) == recipe
