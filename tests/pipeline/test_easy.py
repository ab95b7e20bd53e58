"""`limbeck.distill`: what it trains, measures, writes, goes on from, and refuses."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck import KD, FitNet, Supervised, distill
from limbeck.core.errors import ArtifactError, DataError, LockedError, MismatchError, RecipeError, TrainingError
from limbeck.core.events import Event, Progress
from limbeck.core.files import lock
from limbeck.engine.plan import Training

Batches = list[tuple[Tensor, Tensor]]
PLAIN = {"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0}, "schedule": {"kind": "constant"}}


def batches(seed: int, count: int, size: int = 16) -> Batches:
    """Batches of three overlapping clouds in 8 dimensions."""
    made = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count * size,), generator=made)
    x = torch.randn(count * size, 8, generator=made)
    x[:, :3] += 1.5 * F.one_hot(y, 3)
    return list(zip(x.split(size), y.split(size), strict=True))


TRAIN, VALIDATION, TEST = batches(1, 12), batches(2, 3), batches(3, 4)


def mlp(width: int, *, seed: int = 0, classes: int = 3, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes))


@pytest.fixture(scope="module")
def taught() -> nn.Sequential:
    """A teacher that knows its task."""
    model = mlp(32, seed=7)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in TRAIN * 5:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def teacher(taught: nn.Sequential) -> nn.Sequential:
    return copy.deepcopy(taught)


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# What it trains


def test_it_trains_the_given_student_as_a_loop_by_hand_does(teacher: nn.Module) -> None:
    student, twin = (nn.Linear(8, 3, dtype=torch.float64) for _ in range(2))
    twin.load_state_dict(state(student))
    data = [(x.double(), y) for x, y in TRAIN]
    wise = teacher.double()
    done = distill(wise, student, data, epochs=3, training=PLAIN)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for x, y in data * 3:
        p, log_q = (wise(x) / 4).softmax(-1).detach(), (twin(x) / 4).log_softmax(-1)
        soft = 16 * (p * (p.log() - log_q)).sum(-1)
        loss = (0.9 * soft - 0.1 * twin(x).log_softmax(-1)[torch.arange(len(y)), y]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert done.student is student
    assert not student.training
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-9, atol=1e-12)


class Batched:
    """A loader of the user's own: a length, and batches each time it is asked."""

    def __len__(self) -> int:
        return len(TRAIN)

    def __iter__(self) -> Iterator[Any]:
        return iter(TRAIN)


def _dataset() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.cat([x for x, _ in TRAIN]), torch.cat([y for _, y in TRAIN])), batch_size=16)


LOADERS: dict[str, Callable[[], Any]] = {
    "DataLoader": _dataset,
    "own class": Batched,
    "lists in batches": lambda: [[x, y] for x, y in TRAIN],
    "input and label": lambda: [{"input": x, "label": y, "id": torch.arange(len(y))} for x, y in TRAIN],
    "pixel_values and labels": lambda: [{"pixel_values": x, "labels": y.int()} for x, y in TRAIN],
    "Task": lambda: limbeck.Classify({"train": [{"x": x, "y": y} for x, y in TRAIN]}, input="x", label="y", classes=3),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_loader_gives_the_same_student(teacher: nn.Module, kind: str) -> None:
    expected = distill(teacher, mlp(4), TRAIN, epochs=1).student
    assert same(state(distill(teacher, mlp(4), LOADERS[kind](), epochs=1).student), state(expected))


def test_a_seed_makes_it_the_same_again(teacher: nn.Module) -> None:
    def once(seed: int) -> dict[str, Tensor]:
        data = DataLoader(TensorDataset(torch.cat([x for x, _ in TRAIN]), torch.cat([y for _, y in TRAIN])), batch_size=16, shuffle=True)
        return state(distill(teacher, mlp(4, dropout=0.3), data, epochs=2, seed=seed).student)

    first = once(1)
    torch.rand(5)
    assert same(first, once(1))
    assert not same(first, once(2))


def test_a_projector_is_learnt_and_left_out_of_the_student(teacher: nn.Module) -> None:
    student, hint = mlp(4), FitNet(layers={"2": "2"}, reduction="mean")
    names = list(student.state_dict())
    done = distill(teacher, student, TRAIN, objectives=[0.5 * KD(), hint], epochs=4, training={"optimizer": {"kind": "adam", "lr": 1e-2}})
    (project,) = hint.projectors
    assert len(list(project.parameters())) == 2
    x = torch.cat([x for x, _ in TEST])
    hints = [row["parts"]["fitnet"] for row in done.history]
    assert hints[-1] < 0.8 * hints[0]
    with torch.no_grad():
        matched = (project(student[:3](x)) - teacher[:3](x)).square().mean()  # pyright: ignore[reportIndexIssue]
        assert matched < 1.2 * hints[-1]
    assert list(student.state_dict()) == names
    assert done.metrics["parameters"] == sum(parameter.numel() for parameter in student.parameters())


def test_the_teacher_stays_as_it_was_and_ends_in_eval_mode(teacher: nn.Module) -> None:
    teacher.train()
    next(teacher.parameters()).requires_grad_(False)
    before, asked = state(teacher), [parameter.requires_grad for parameter in teacher.parameters()]
    distill(teacher, mlp(4), TRAIN, objectives=[KD(), FitNet(layers={"2": "2"})], epochs=2, test=TEST)
    assert same(state(teacher), before)
    assert [parameter.requires_grad for parameter in teacher.parameters()] == asked
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_nothing_clings_to_the_student(teacher: nn.Module) -> None:
    student = mlp(4)
    keys = {name: set(vars(module)) for name, module in student.named_modules()}
    distill(teacher, student, TRAIN, objectives=[KD(), FitNet(layers={"2": "2"})], epochs=1)
    assert {name: set(vars(module)) for name, module in student.named_modules()} == keys
    assert not any(module._forward_hooks or module._backward_hooks for module in student.modules())
    assert same(state(pickle.loads(pickle.dumps(student))), state(student))
    student(TRAIN[0][0]).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_several_teachers_teach_it(teacher: nn.Module) -> None:
    both = limbeck.Ensemble([teacher, mlp(16, seed=3).eval()])
    done = distill(both, mlp(4), TRAIN, epochs=2, test=TEST)
    assert done.history[1]["train_loss"] < done.history[0]["train_loss"]
    assert 0 <= done.metrics["agreement"] <= 1


def test_channels_last_is_done_and_not_passed_over() -> None:
    images = [(torch.randn(4, 2, 4, 4), torch.tensor([0, 1, 2, 0]))]
    student = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3))
    distill(copy.deepcopy(student), student, images, epochs=1, training={"channels_last": True})
    assert next(student.parameters()).is_contiguous(memory_format=torch.channels_last)


# What it measures


def test_its_history_and_metrics_without_validation_or_test(teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = distill(teacher, mlp(4), TRAIN, epochs=3)
    assert [row["epoch"] for row in done.history] == [1, 2, 3]
    assert set(done.history[0]["parts"]) == {"kd", "supervised"}
    assert done.metrics.keys() == {"epochs", "best_epoch", "train_seconds", "steps_per_s", "parameters"}
    assert (done.metrics["epochs"], done.metrics["best_epoch"], done.artifact) == (3, 3, None)
    assert list(tmp_path.iterdir()) == [], "nothing is written without out="


def _accuracy(model: nn.Module, data: Batches) -> float:
    with torch.no_grad():
        return torch.cat([model(x).argmax(-1) == y for x, y in data]).double().mean().item()


def test_the_student_ends_with_the_weights_of_its_best_epoch_by_validation(teacher: nn.Module) -> None:
    wild = {"optimizer": {"kind": "sgd", "lr": 3.0, "momentum": 0.9}, "schedule": {"kind": "constant"}}
    done = distill(teacher, mlp(4), TRAIN, epochs=6, validation=VALIDATION, training=wild)
    reached = [row["validation_accuracy"] for row in done.history]
    assert len(set(reached)) > 1
    best = max(done.history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert done.metrics["best_epoch"] == best["epoch"] < 6, "a run whose last epoch is its best shows nothing"
    assert done.metrics["validation_accuracy"] == pytest.approx(max(reached)) == pytest.approx(_accuracy(done.student, VALIDATION))
    assert done.metrics["validation_accuracy_last"] == pytest.approx(reached[-1])


@pytest.mark.parametrize("shuffle", [False, True])
def test_it_measures_on_the_test_batches(teacher: nn.Module, shuffle: bool) -> None:
    x, y = torch.cat([x for x, _ in TEST]), torch.cat([y for _, y in TEST])
    done = distill(teacher, mlp(4), TRAIN, epochs=1, test=DataLoader(TensorDataset(x, y), batch_size=10, shuffle=shuffle))
    with torch.no_grad():
        ours, theirs = done.student(x).double(), teacher(x).double()
    assert done.metrics["accuracy"] == pytest.approx(_accuracy(done.student, TEST))
    assert done.metrics["agreement"] == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).double().mean().item())
    kl = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean().item()
    assert done.metrics["kl_to_teacher"] == pytest.approx(kl, rel=1e-5)


def test_models_of_different_classes_share_features_and_are_not_said_to_agree() -> None:
    done = distill(mlp(32, classes=5), mlp(4), TRAIN, objectives=[FitNet(layers={"2": "2"}), Supervised()], epochs=1, test=TEST)
    assert done.metrics["accuracy"] == pytest.approx(_accuracy(done.student, TEST))
    assert "agreement" not in done.metrics


# What it writes, and goes on from


def test_its_artifact_loads_into_a_model_of_ones_own(teacher: nn.Module, tmp_path: Path) -> None:
    done = distill(teacher, mlp(4), TRAIN, epochs=2, validation=VALIDATION, test=TEST, out=tmp_path / "out")
    assert done.artifact is not None and done.artifact.path == tmp_path / "out" / "student"
    x = TEST[0][0]
    loaded = limbeck.load(done.artifact.path, model=mlp(4, seed=5))
    assert torch.equal(loaded(x), done.student(x))
    assert not loaded.training
    assert done.artifact.metrics == done.metrics
    assert {"accuracy", "agreement", "macs", "validation_accuracy"} <= done.metrics.keys()
    assert done.metrics["macs"] == 8 * 4 + 4 * 3
    assert done.artifact.spec["in_shape"] == [8] and done.artifact.spec["classes"] == 3
    with pytest.raises(ArtifactError, match=r"the weights of a torch.nn.modules.container.Sequential that limbeck did not build: load\(path, model=...\)"):
        limbeck.load(done.artifact.path)
    with pytest.raises(ArtifactError, match="do not fit Sequential"):
        limbeck.load(done.artifact.path, model=mlp(5))


class Killed(BaseException):
    """Stands for a kill."""


def kill_at(step: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.step >= step:
            raise Killed

    return listen


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_killed_call_goes_on_in_the_same_folder(teacher: nn.Module, tmp_path: Path, shuffle: bool) -> None:
    whole = TensorDataset(torch.cat([x for x, _ in TRAIN]), torch.cat([y for _, y in TRAIN]))

    def call(out: Path, seed: int = 0, **more: Any) -> limbeck.Result:
        objectives = [0.7 * KD(temperature=2.0), FitNet(layers={"2": "2"}, reduction="mean")]
        data = DataLoader(whole, batch_size=16, shuffle=shuffle)
        return distill(teacher, mlp(4, seed=seed, dropout=0.2), data, objectives=objectives, epochs=4, validation=VALIDATION, out=out, **more)

    straight = call(tmp_path / "straight")
    with pytest.raises(Killed):
        call(tmp_path / "killed", listener=kill_at(34))  # twelve steps an epoch: in the third
    assert not (tmp_path / "killed" / "student").exists()
    resumed = call(tmp_path / "killed", seed=9)  # other first weights, as in a script that sets no seed
    assert same(state(resumed.student), state(straight.student))
    timeless = [{name: value for name, value in row.items() if name != "seconds"} for row in resumed.history]
    assert timeless == [{name: value for name, value in row.items() if name != "seconds"} for row in straight.history]


class Counted(list[Any]):
    """A list of batches that counts how many were drawn."""

    drawn = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.drawn += 1
            yield batch


def test_a_finished_call_is_not_done_again_and_takes_more_epochs(teacher: nn.Module, tmp_path: Path) -> None:
    def call(epochs: int) -> tuple[limbeck.Result, int]:
        data, hint = Counted(TRAIN), FitNet(layers={"2": "2"})
        return distill(teacher, mlp(4), data, objectives=[KD(), hint], epochs=epochs, training=PLAIN, out=tmp_path), data.drawn

    first, worked = call(2)
    again, looked = call(2)
    assert worked - looked == 2 * len(TRAIN)
    assert same(state(again.student), state(first.student))
    more, worked = call(3)
    assert worked - looked == len(TRAIN)
    assert more.history[:2] == first.history and len(more.history) == 3
    straight = distill(teacher, mlp(4), TRAIN, objectives=[KD(), FitNet(layers={"2": "2"})], epochs=3, training=PLAIN)
    assert same(state(more.student), state(straight.student))


CHANGES: dict[str, dict[str, Any]] = {
    "temperature": {"objectives": [0.9 * KD(temperature=8.0), 0.1 * Supervised()]},
    "weight": {"objectives": [0.8 * KD(temperature=4.0), 0.1 * Supervised()]},
    "seed": {"seed": 1},
    "training": {"training": {"optimizer": {"kind": "adam"}}},
    "teacher": {"teacher": mlp(32, seed=1)},
    "student": {"student": mlp(5)},
    "classes": {"classes": 4},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_call_that_asks_for_something_else_is_no_going_on(teacher: nn.Module, tmp_path: Path, changed: str) -> None:
    def call(out: Path | None, **more: Any) -> limbeck.Result:
        asked = {"teacher": teacher, "student": mlp(4), "data": TRAIN, "epochs": 1, "out": out}
        return distill(**copy.deepcopy(asked | more))

    call(tmp_path)
    done = call(tmp_path, **CHANGES[changed])
    assert same(state(done.student), state(call(None, **CHANGES[changed]).student))


def test_objectives_that_were_used_before_go_on_too(teacher: nn.Module, tmp_path: Path) -> None:
    objectives = [KD(), FitNet(layers={"2": "2"})]
    first = distill(teacher, mlp(4), TRAIN, objectives=objectives, epochs=1, out=tmp_path)
    again = distill(teacher, mlp(4, seed=3), TRAIN, objectives=objectives, epochs=1, out=tmp_path)
    assert same(state(again.student), state(first.student))


def test_two_calls_do_not_work_in_one_folder_at_once(teacher: nn.Module, tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(LockedError, match="another limbeck run is working in"):
        distill(teacher, mlp(4), TRAIN, epochs=1, out=tmp_path)


# What it refuses

X, Y = TRAIN[0]
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a generator": ({"data": (one for one in TRAIN)}, DataError, "the train loader is a generator, which can be iterated only once: give a list"),
    "a data set": ({"data": TensorDataset(X, Y)}, DataError, "the train loader is a TensorDataset, which cannot be iterated: give a DataLoader"),
    "no batch": ({"data": []}, DataError, "the train loader has no batch"),
    "no validation batch": ({"validation": []}, DataError, "the validation loader has no batch"),
    "no labels to learn": ({"data": [X]}, MismatchError, "the objective supervised needs labels and the batch has none"),
    "no labels to test": ({"test": [X]}, MismatchError, "the batch has no labels"),
    "a label out of range": ({"data": [(X, Y + 1)]}, DataError, "label 3 is out of range: there are 3 classes, 0..2"),
    "a validation label out of range": ({"validation": [(X, Y - 1)]}, DataError, "label -1 is out of range"),
    "float labels": ({"data": [(X, Y.float())]}, MismatchError, "must be a tensor of whole numbers"),
    "a test generator": ({"test": (one for one in TEST)}, DataError, "the test loader is a generator"),
    "a teacher of other classes": ({"teacher": mlp(8, classes=5)}, MismatchError, "the student has 3 classes, the teacher 5"),
    "a teacher that is a function": ({"teacher": lambda x: x}, MismatchError, "the teacher is a function; it must be a torch.nn.Module"),
    "a student that is a class": ({"student": nn.Linear}, MismatchError, "the student is a type; it must be a torch.nn.Module"),
    "a student that cannot learn": ({"student": mlp(4).requires_grad_(False)}, MismatchError, "no parameter that requires a gradient"),
    "a layer that is not there": ({"objectives": [FitNet(layers={"hidden": "2"})]}, RecipeError, "student .* has no layer 'hidden'"),
    "no objective": ({"objectives": []}, RecipeError, "a scheme without objectives has nothing to learn"),
    "one objective, not a list": ({"objectives": KD()}, RecipeError, r"give a list, objectives=\[...\]"),
    "no epoch": ({"epochs": 0}, RecipeError, "'epochs' of training should be greater than or equal to 1; given is 0"),
    "epochs said twice": ({"training": {"epochs": 2}}, RecipeError, "epochs is 1, and training says 2"),
    "epochs said twice, typed": ({"training": Training(epochs=2)}, RecipeError, "epochs is 1, and training says 2"),
    "a misspelt option": ({"training": {"clipp": 1}}, RecipeError, "no option 'clipp' in training; did you mean 'clip'?"),
    "a misspelt option within": ({"training": {"optimizer": {"kind": "adam", "lrr": 1}}}, RecipeError, "no key 'lrr'; did you mean 'lr'?"),
    "a step that does not divide": (
        {"data": limbeck.Classify({"train": TRAIN}, classes=3), "training": {"batch_size": 9, "accumulate": 2}},
        MismatchError,
        "batch_size 9 does not divide into 2 micro-batches",
    ),
    "fewer batches than a step": ({"training": {"accumulate": 64, "batch_size": 64}}, MismatchError, "an epoch has 12 batches, fewer than the 64"),
    "half precision on a CPU": ({"training": {"precision": "16-mixed"}}, MismatchError, "precision 16-mixed needs a GPU"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_refused_before_step_one(teacher: nn.Module, tmp_path: Path, why: str) -> None:
    wrong, error, message = REFUSED[why]
    student = mlp(4)
    before = state(student)
    asked: dict[str, Any] = {"teacher": teacher, "student": student, "data": TRAIN, "epochs": 1}
    with pytest.raises(error, match=message) as raised:
        distill(**asked | wrong)
    assert isinstance(raised.value, limbeck.LimbeckError)
    assert "\n" not in str(raised.value)
    assert same(state(student), before)
    assert all(module.training for module in student.modules()), "a refusal leaves the student's mode as it was"


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="temperature is 0; it must be a finite number above zero"):
        KD(temperature=0)


def test_a_loss_that_is_not_finite_stops_it_within_a_few_steps_and_names_the_step(teacher: nn.Module) -> None:
    spoilt = [(torch.full_like(x, float("nan")) if index == 3 else x, y) for index, (x, y) in enumerate(TRAIN)]
    seen: list[Event] = []
    with pytest.raises(TrainingError, match=r"of student is nan at step 4: .*data that are not finite"):
        distill(teacher, mlp(4), spoilt, epochs=5, listener=seen.append)
    assert not seen, "it stopped before it told of any progress"
