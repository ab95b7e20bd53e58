"""Each thing that silently ruins a distillation, made on purpose, is found; a sound one has no fault."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.knowledge import Dense, Knowledge, Needs, Reads
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.schedule import Linear
from limbeck.core.task import default_task
from limbeck.objectives.feature.fitnet import FitNet
from limbeck.objectives.response.kd import KD, kd_loss
from limbeck.objectives.supervised import Supervised
from limbeck.pipeline.doctor import Finding, dry, examine
from limbeck.pipeline.recipe import load_recipe
from limbeck.schemes.offline import Offline

C = 4
CENTRES = 3 * torch.eye(C, 6)


def data(count: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four clusters, in six dimensions."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % C
    return CENTRES[y] + torch.randn(count, 6, generator=draw), y


class Teacher(nn.Module):
    """Right about nearly all of the data: two layers of known weights."""

    def __init__(self, order: list[int] | None = None) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(6, C)
        with torch.no_grad():
            self.layer1[0].weight.copy_(torch.eye(6))  # pyright: ignore[reportArgumentType]
            self.layer1[0].bias.zero_()  # pyright: ignore[reportCallIssue]
            self.head.weight.copy_(CENTRES[order or list(range(C))])
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer1(x))


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, C))


def kd(of: Any = None, to: Any = None, objectives: list[Any] | None = None, **options: Any) -> Offline:
    return Offline(to or student(), of or Teacher(), objectives or [0.9 * KD(), 0.1 * Supervised()], example=data(8), **options)


def faults(scheme: Offline, **how: Any) -> list[Finding]:
    """What is not fine, with one batch of 32 and a sample of 512."""
    return [one for one in examine(scheme, data(32), [data(512, 1)], **how) if one.level != "fine"]


def only(scheme: Offline, level: str, about: str, told: str, **how: Any) -> None:
    (found,) = faults(scheme, **how)
    assert (found.level, found.about) == (level, about), found
    assert told in found.text
    assert "\n" not in found.text and str(found).startswith(f"{level}: ")


def test_a_sound_setup_has_no_fault_and_says_what_was_looked_at() -> None:
    found = examine(kd(objectives=[0.9 * KD(), FitNet(layers={"0": "layer1"}, reduction="mean"), 0.1 * Supervised()]), data(32), [data(512, 1)])
    assert {one.level for one in found} == {"fine"}, found
    assert {one.about for one in found} == {"teacher's mode", "logits", "features", "class order", "teacher's skill", "gradient", "parameters"}
    assert any("accuracy of the teacher 0.9" in one.text and "(512 examples)" in one.text for one in found)


def test_nothing_changes() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, C))
    net[2].eval()
    scheme = kd(to=net)
    before = copy.deepcopy(scheme.state_dict())
    torch.manual_seed(3)
    examine(scheme, data(32))
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert all(torch.equal(value, before[name]) for name, value in scheme.state_dict().items())
    assert net.training and net[1].training and not net[2].training
    assert all(one.grad is None for one in scheme.parameters())


def test_a_teacher_in_train_mode() -> None:
    class Stubborn(Teacher):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.9)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.layer1(x)))

    stubborn = Stubborn()
    scheme = kd(of=stubborn)
    stubborn.drop.train()
    found = faults(scheme)
    assert found[0].about == "teacher's mode" and "drop (Dropout)" in found[0].text and "teacher.eval()" in found[0].text
    assert "asked twice" in found[1].text and found[1].level == "fault"


def test_a_teacher_that_is_random_or_reads_the_company() -> None:
    class Functional(Teacher):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.layer1(x), 0.1))

    class Company(Teacher):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.batch_norm(self.layer1(x), None, None, training=True))

    assert "F.dropout" in faults(kd(of=Functional()))[0].text
    only(kd(of=Company()), "warning", "teacher's mode", "depends on which examples share a batch")


def test_a_teacher_that_knows_less_than_its_student() -> None:
    bad = Teacher()
    nn.init.zeros_(bad.head.weight)
    nn.init.constant_(bad.head.bias[1:2], 2.0)
    only(kd(of=bad, objectives=[KD(temperature=1.0), Supervised()]), "fault", "teacher's skill", "no better than naming the commonest class (0.25)")
    half = Teacher()
    with torch.no_grad():
        half.head.weight[2:] = -1.0  # knows two classes of four
    only(kd(of=half, to=Teacher(), objectives=[1e-3 * KD(), Supervised()]), "fault", "teacher's skill", "the student is better; exchange the two")
    assert not faults(kd(of=bad, objectives=[KD(temperature=1.0), Supervised()]), trained=False), "a teacher to be trained is not asked what it knows"


def test_logits_that_are_probabilities_or_their_logarithms() -> None:
    only(kd(of=nn.Sequential(Teacher(), nn.Softmax(-1))), "fault", "logits", "the teacher's logits are probabilities, each row sums to one")
    only(kd(of=nn.Sequential(Teacher(), nn.LogSoftmax(-1))), "warning", "logits", "the teacher's logits are log-probabilities")
    only(kd(to=nn.Sequential(student(), nn.Softmax(-1))), "fault", "logits", "the student's logits are probabilities")
    mixture = build("teachers", "ensemble", {}, [Teacher(), Teacher()])
    assert not faults(kd(of=mixture)), "the logarithms of a mixture are what an ensemble gives"


def test_logits_that_are_no_numbers() -> None:
    broken = Teacher()
    with torch.no_grad():
        broken.head.bias[0] = float("nan")
    assert any("the teacher's logits are not all finite" in one.text and one.level == "fault" for one in faults(kd(of=broken)))


def test_class_orders_that_disagree() -> None:
    only(kd(of=Teacher(order=[0, 2, 1, 3])), "fault", "class order", "it answers 1 as 2, 2 as 1; with them exchanged its accuracy is 0.9")
    found = faults(kd(of=Teacher(order=[1, 2, 3, 0])), names=["ant", "bee", "cat", "dog"])
    assert "it answers ant as dog, bee as ant, cat as bee, ..." in found[0].text


def test_a_teacher_that_guesses_is_not_said_to_have_another_order() -> None:
    many = 40
    draw = torch.Generator().manual_seed(0)
    from limbeck.pipeline._ailments import disordered

    found = list(disordered(torch.randint(0, many, (400,), generator=draw), torch.randint(0, many, (400,), generator=draw), many, [""] * many))
    assert [one.level for one in found] == ["fine"]


def test_a_layer_that_is_constant() -> None:
    dead = Teacher()
    with torch.no_grad():
        dead.layer1[0].bias.fill_(-99.0)  # pyright: ignore[reportCallIssue]
    scheme = kd(of=dead, objectives=[FitNet(layers={"0": "layer1"}), Supervised()])
    found = faults(scheme, trained=False)
    assert [(one.level, one.about) for one in found] == [("fault", "features")]
    assert "the teacher's 'layer1' gives the same for every example" in found[0].text
    flat = student()
    with torch.no_grad():
        flat[0][0].bias.fill_(-99.0)  # pyright: ignore[reportIndexIssue]
    assert [one.level for one in faults(kd(to=flat, objectives=[FitNet(layers={"0": "layer1"}), Supervised()])) if one.about == "features"] == ["warning"]


def test_a_hook_that_never_fires_in_training() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.other, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.other(x) if self.training else self.hidden(x))

    scheme = kd(to=Sometimes(), objectives=[FitNet(layers={"hidden": "layer1"}), Supervised()])
    found = faults(scheme)
    assert (found[-1].level, found[-1].about) == ("fault", "MismatchError")
    assert "layer 'hidden' of Sometimes was never called" in found[-1].text


def test_an_objective_that_is_too_weak_or_too_strong_or_nothing() -> None:
    only(kd(objectives=[1e-5 * KD(), Supervised()]), "warning", "gradient", "of the supervised one: a weight of ")
    only(kd(objectives=[1e5 * KD(), Supervised()]), "warning", "gradient", "and balance: gradient_norm keeps it")
    only(kd(objectives=[0.0 * KD(), Supervised()]), "warning", "gradient", "kd has a weight of zero through all of training")
    assert not faults(kd(objectives=[Linear(start=0, end=1) * KD(), Supervised()])), "a warm-up is judged by what it comes to"
    assert not faults(kd(objectives=[1e-5 * KD(), Supervised()], balance="gradient_norm")), "balanced ones have their share anyway"
    assert not faults(kd(objectives=[1e-5 * KD(), Supervised()]), trained=False), "what an untrained teacher says has another size"
    (found,) = [one for one in faults(kd(objectives=[1e-5 * KD(), Supervised()])) if one.about == "gradient"]
    weight = float(found.text.split("a weight of ")[1].split()[0])
    assert not faults(kd(objectives=[weight * KD(), Supervised()]))
    told = [one.text for one in examine(kd(objectives=[weight * KD(), Supervised()]), data(32)) if one.text.startswith("the gradient of kd is ")]
    assert float(told[0].split()[5]) == pytest.approx(1.0, rel=0.01)


class Own(Objective):
    """What a user may have written, well or badly."""

    def __init__(self, how: Callable[["Own", Tensor, Tensor], Tensor], temperature: float = 4.0) -> None:
        super().__init__()
        self.how, self.temperature = how, temperature

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Any, facts: Any) -> None:
        """Fits everything."""

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Any) -> Tensor:
        assert teacher is not None
        return self.how(self, student.main.logits, teacher.main.logits)


def test_a_gradient_that_is_cut_off() -> None:
    own = Own(lambda _, z, v: kd_loss(z.detach(), v))
    only(kd(objectives=[own, Supervised()]), "fault", "gradient", "gives the student no gradient: what it reads is cut off from the student")
    frozen = student()
    frozen[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    scheme = kd(to=frozen, objectives=[FitNet(layers={"0": "layer1"}), Supervised()])
    only(scheme, "fault", "gradient", "fitnet gives the student no gradient")


@pytest.mark.parametrize(("power", "share"), [(2, None), (1, "50%"), (0, "25%")])
def test_a_missing_square_of_the_temperature(power: int, share: str | None) -> None:
    own = Own(lambda self, z, v: kd_loss(z, v, temperature=self.temperature) * self.temperature ** (power - 2))
    if share is None:
        assert not faults(kd(objectives=[own, Supervised()]))
    else:
        only(kd(objectives=[own, Supervised()]), "warning", "temperature", f"keeps {share} of its size when its temperature doubles: multiply the loss by T^2")


def test_parameters_that_no_optimizer_holds() -> None:
    scheme = kd(objectives=[FitNet(layers={"0": "layer1"}), Supervised()])
    only(
        scheme,
        "fault",
        "parameters",
        "no optimizer holds terms.0.objective.projectors.0.linear.weight and 1 more",
        optimizers=[torch.optim.SGD(scheme.student.parameters(), 0.1)],
    )
    assert not faults(scheme, optimizers=[torch.optim.SGD(scheme.parameters(), 0.1)])
    hidden = [nn.Linear(C, C)]
    only(kd(objectives=[Own(lambda _, z, v: kd_loss(hidden[0](z), v)), Supervised()]), "fault", "parameters", "learns a parameter [4, 4] that no module holds")


def test_what_does_not_fit_is_a_finding() -> None:
    scheme = Offline(student(), Teacher(), [KD(), Supervised()], default_task())
    (found,) = examine(scheme, data(8)[0])
    assert (found.level, found.about) == ("fault", "MismatchError") and "needs labels" in found.text


def test_an_input_s_gradient_is_no_unheld_parameter() -> None:
    class Sensitive(Own):
        @property
        def needs(self) -> Needs:
            return Needs(student=Reads(input_gradient=True), labels=True)

        def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Any) -> Tensor:
            assert student.input_gradient is not None
            return student.input_gradient.square().sum(-1)

    assert not faults(kd(objectives=[Sensitive(lambda *_: torch.zeros(())), Supervised()]))


def test_a_task_without_classes_is_examined_for_the_rest() -> None:
    class Bernoulli(type(default_task())):
        metric = "hits"

        def forward(self, model: nn.Module, batch: Any) -> Knowledge:
            return Knowledge({"main": Dense(model(batch["input"]), "bernoulli")})

    scheme = Offline(student(), Teacher(), [Own(lambda _, z, v: (z - v).square().mean(-1))], Bernoulli(), data(8))
    assert not faults(scheme)


RECIPE = {
    "name": "toy",
    "task": {"kind": "image", "data": "digits"},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [32]}, "epochs": 2, "optimizer": {"kind": "adam", "lr": 0.01}},
        "student": {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "mlp", "widths": [8]}, "epochs": 1},
    },
}


def test_a_recipe_s_teacher_is_looked_at_once_it_is_there(tmp_path: Path) -> None:
    from limbeck.pipeline.run import run_recipe

    lines, found = dry(RECIPE, out=tmp_path)
    assert any(line.startswith("stage student: distill") for line in lines)
    assert list(found) == ["teacher", "student"]
    assert {one.level for each in found.values() for one in each} == {"fine"}
    assert any("what teacher knows, and how strong its gradient is, is not looked at: it has no weights yet" in one.text for one in found["student"])
    assert not any("accuracy" in one.text for one in found["student"])
    teacher_alone = {**RECIPE, "stages": {"teacher": RECIPE["stages"]["teacher"]}}
    run_recipe(load_recipe(teacher_alone), out=tmp_path, listener=lambda _: None)
    _, found = dry(RECIPE, out=tmp_path)
    (skill,) = [one for one in found["student"] if one.about == "teacher's skill"]
    assert skill.level == "fine" and skill.text.startswith("accuracy of the teacher 0.")
    _, found = dry(RECIPE, sets=["stages.teacher.epochs=3"], out=tmp_path)
    assert any("no weights yet" in one.text for one in found["student"]), "an artifact of another recipe is not taken for it"
