"""The native ensemble: its loss written out, one trunk, and a student that ships as it is."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.pipeline.check import check
from limbeck.schemes._split import Gate, cut
from limbeck.schemes.one import ONE
from limbeck.tasks.classify import Classify


def objective(kind: str, **options: Any) -> Objective:
    return build("objectives", kind, options)


def taught(temperature: float = 3.0) -> list[Any]:
    return [0.7 * objective("response.kd", temperature=temperature), 1.3 * objective("supervised")]


def net(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 5), *(extra or (nn.ReLU(inplace=True),)), nn.Linear(5, 3)
    ).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made, dtype=torch.float64), torch.randint(0, 3, (6,), generator=made)


def scheme(student: nn.Module, batch: Any, *objectives: Any, **options: Any) -> ONE:
    return ONE(student, None, list(objectives) or taught(), example=batch, **{"split": "2", **options}).double()


def test_the_loss_is_eq_9_written_out(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    made = scheme(net(), batch, branches=3)
    with torch.no_grad():
        made.fork.gate.norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
    plain = copy.deepcopy(made)
    found = made(batch)
    student, branches, gate = plain.shipped()["student"], [dict(one.named_children()) for one in plain.fork.branches], plain.fork.gate
    layers = list(student.children())
    h = F.relu(layers[1](layers[0](x)))
    z = [layers[5](F.relu(layers[3](h)))] + [one["5"](F.relu(one["3"](h))) for one in branches]
    scores = h @ gate.linear.weight.T
    centred = (scores - scores.mean(0)) / (scores.var(0, correction=0) + gate.norm.eps).sqrt()
    g = F.relu(centred * gate.norm.weight + gate.norm.bias).softmax(-1)
    whole = torch.stack([g[:, at, None] * z[at] for at in range(3)]).sum(0)
    total = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(y.tolist()):
        p = (whole[row] / 3).softmax(0).detach()
        total = total - 1.3 * whole[row].log_softmax(0)[label]
        for each in z:
            q = (each[row] / 3).softmax(0)
            total = total - 1.3 * each[row].log_softmax(0)[label] + 0.7 * 9 * (p * (p.log() - q.log())).sum()
    torch.testing.assert_close(found.sums["student"], total, rtol=1e-12, atol=1e-12)
    assert found.parts.keys() == {*(f"{whose}{name}" for whose in ("", "branch1_", "branch2_") for name in ("kd", "supervised")), "ensemble_supervised"}
    found.loss.backward()
    total.div(6).backward()
    for (name, one), other in zip(made.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_the_gate_and_the_other_branches_learn_from_the_labels_of_the_ensemble_alone(batch: tuple[Tensor, Tensor]) -> None:
    made = scheme(net(), batch, objective("response.kd"))
    made(batch).loss.backward()
    assert all(one.grad is None or not one.grad.any() for one in made.fork.gate.parameters()), "what teaches carries no gradient"
    assert "ensemble_supervised" not in made(batch).parts


@pytest.mark.parametrize(
    ("kind", "options", "split"),
    [
        ("cnn", {"width": 4}, "layer2"),
        ("cnn", {"width": 4}, "layer2.1"),
        ("mlp", {"widths": [8, 8]}, "layer1"),
        ("resnet", {"depth": 8}, "layer2"),
        ("resnet", {"depth": 8}, "layer2.0.conv1"),
        ("wrn", {"depth": 10, "width": 1}, "layer1"),
        ("vit", {"dim": 16, "depth": 2, "heads": 2}, "blocks.0"),
    ],
)
def test_the_student_alone_answers_as_the_first_branch(kind: str, options: dict[str, Any], split: str) -> None:
    torch.manual_seed(0)
    student = build("models", kind, options, in_shape=(1, 8, 8), classes=3)
    batch = {"input": torch.randn(4, 1, 8, 8), "label": torch.tensor([0, 1, 2, 0])}
    made = ONE(student, None, taught(), example=batch, split=split, branches=2)
    made.eval()
    said, _ = made.fork.ask(batch, Classify())
    torch.testing.assert_close(said[0].main.logits, student(batch["input"]), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(said[0].main.logits, said[1].main.logits, atol=1e-3), "branches begin apart"
    assert made.shipped()["student"] is student
    fresh = build("models", kind, options, in_shape=(1, 8, 8), classes=3)
    fresh.load_state_dict(made.shipped()["student"].state_dict())
    made.train()
    made(batch).loss.backward()
    assert all(one.grad is not None for one in made.players()["student"])


def test_the_trunk_runs_once_a_batch(batch: tuple[Tensor, Tensor]) -> None:
    student = net()
    made = scheme(student, batch, branches=4)
    runs: dict[str, int] = {"0": 0, "5": 0}
    for name in runs:
        student.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    made(batch)
    assert runs == {"0": 1, "5": 1} and student[1].num_batches_tracked == 1


def test_what_the_branches_share_and_what_each_has(batch: tuple[Tensor, Tensor]) -> None:
    student = net()
    made = scheme(student, batch, branches=3)
    names = {name for name, _ in made.named_parameters()}
    assert {name for name in names if name.startswith("fork.branches.1")} == {f"fork.branches.1.{at}.{kind}" for at in (3, 5) for kind in ("weight", "bias")}
    held = made.players()["student"]
    assert len({id(one) for one in held}) == len(held) == len(list(made.parameters()))
    assert not any(name.startswith(("fork._model", "lesson.teacher")) for name in made.state_dict())
    again = copy.deepcopy(made)
    again(batch).loss.backward()
    assert all(one.grad is None for one in made.parameters()) and all(one.grad is not None for one in again.parameters())


class Skip(nn.Module):
    """A skip over the cut, and a weight of its own after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) + x[:, :3]) * self.scale


def test_what_goes_round_the_cut_goes_round_it_and_loose_weights_are_the_branch_s_own() -> None:
    student, batch = Skip(), (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    made = ONE(student, None, taught(), example=batch, split="first", branches=2)
    said, _ = made.fork.eval().ask(Classify().batch(batch), Classify())
    torch.testing.assert_close(said[0].main.logits, student(batch[0]))
    assert {name for name, _ in made.fork.branches[0].named_parameters()} == {"scale", "second.weight", "second.bias"}


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.second.in_features * self.third(self.first(x).relu()))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (net, {"split": "9"}, "no layer '9'"),
        (net, {"split": "5"}, "nothing that learns follows the layer '5'"),
        (net, {"branches": 1}, "branches is 1: give two or more"),
        (Undecided, {"split": "layer"}, "Undecided cannot be split, since its forward pass cannot be traced"),
        (Tied, {"split": "first"}, r"a weight of shape \(4, 4\) is used before it and after it"),
        (Tied, {"split": "idle"}, "is never called by itself"),
        (net, {"objectives": [objective("supervised")]}, "teaches nobody"),
        (net, {"objectives": [objective("feature.fitnet", layers={"0": "0"})]}, "reads layers, and an ensemble of branches has its answers alone"),
        (net, {"objectives": [objective("attention.at")]}, "reads layers"),
        (net, {"objectives": [objective("adversarial.logit_discriminator")]}, "is a contest"),
        (net, {"teacher": nn.Linear(4, 3)}, "nobody teaches but those who learn"),
        (net, {"example": None}, "give the scheme `example=` a batch"),
    ],
)
def test_what_cannot_be_meant_is_refused(model: Callable[[], nn.Module], options: dict[str, Any], message: str, batch: Any) -> None:
    given: dict[str, Any] = {"teacher": None, "objectives": taught(), "example": (batch[0].float(), batch[1]), "split": "2", **options}
    with pytest.raises((RecipeError, MismatchError), match=message):
        ONE(model().float(), given.pop("teacher"), given.pop("objectives"), **given)


def test_one_layer_that_runs_twice_is_refused() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(MismatchError, match="'0', which runs 2 times"):
        cut(_Twice(shared), "0")


class _Twice(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return self[0](self[0](input))


def test_a_batch_of_one_is_refused_in_one_line(batch: tuple[Tensor, Tensor]) -> None:
    student = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    made = scheme(student, batch, split="1")
    with pytest.raises(MismatchError, match="take batch_size 2 or more"):
        made((batch[0][:1], batch[1][:1]))


def test_dropout_asked_for_by_the_mode_is_traced_as_training_has_it() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 50), nn.Linear(50, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.dropout(self.first(x), 0.5, self.training))

    batch = {"input": torch.randn(4, 4), "label": torch.tensor([0, 1, 2, 0])}
    student = Dropping().eval()
    made = ONE(student, None, taught(), example=batch, split="first", branches=2)
    assert not student.training
    made.train()
    one, other = (made.fork.ask(batch, Classify())[0][0].main.logits for _ in range(2))
    assert not torch.equal(one, other)


def test_the_gate_averages_places_and_gives_shares() -> None:
    gate = Gate(3, 4).eval()
    maps = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(gate(maps), gate(maps.mean((2, 3))))
    torch.testing.assert_close(gate(maps.flatten(2).transpose(1, 2)), gate(maps.mean((2, 3))))
    torch.testing.assert_close(gate(maps).sum(-1), torch.ones(2))


def test_a_recipe_is_checked_before_the_first_step() -> None:
    stage = {
        "kind": "train",
        "model": {"kind": "cnn", "width": 4},
        "objectives": [{"kind": "response.kd"}, {"kind": "supervised"}],
        "scheme": {"kind": "one", "split": "layer4"},
    }
    with pytest.raises(RecipeError, match="no layer 'layer4'; did you mean 'layer"):
        check({"name": "toy", "task": {"kind": "image", "data": "digits", "subset": 256}, "stages": {"student": stage}})
