"""Objectives, weights, losses and the clock of a scheme."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Needs
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import Clock, Decay, Linear, Number
from limbeck.core.scheme import Losses, Scheme


class Squares(Objective):
    """Mean squared difference of logits, at a temperature."""

    def __init__(self, *, temperature: Number = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, student, teacher, task, facts) -> None:
        pass

    def forward(self, student, teacher, batch) -> Tensor:
        assert teacher is not None
        return (student.main.logits - teacher.main.logits).div(self.now(self.temperature)).square().mean(-1)


class Toy(Scheme):
    """One player, objectives in a list, one of them inside a wrapper."""

    def __init__(self, terms: list[Term]) -> None:
        super().__init__()
        self.student = nn.Linear(2, 3)
        self.terms = nn.ModuleList(terms)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"student": list(self.parameters())}

    def optimizers(self) -> dict[str, Any]:
        return {}

    def forward(self, batch, phase: str = "student") -> Losses:
        knowledge = Knowledge({"main": Dense(self.student(batch["input"]))})
        target = Knowledge({"main": Dense(batch["target"])})
        mask = batch["mask"].float()
        losses = [term.objective.now(term.weight) * (term.objective(knowledge, target, batch) * mask).sum() for term in self.terms]  # pyright: ignore
        return Losses({"student": torch.stack(losses).sum()}, mask.sum())

    def shipped(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def after_step(self) -> None:
        pass


def batch(mask: list[bool]) -> dict[str, Tensor]:
    n = len(mask)
    return {"input": torch.ones(n, 2), "target": torch.arange(n * 3.0).view(n, 3), "mask": torch.tensor(mask)}


def test_a_weight_makes_a_term():
    objective = Squares()
    term = 0.9 * objective
    assert isinstance(term, Term)
    assert term.objective is objective
    assert term.weight == 0.9
    assert list(term.children()) == [objective]


def test_a_weight_may_follow_a_schedule():
    ramp = Linear(start=0, end=1)
    assert (ramp * Squares()).weight is ramp


def test_the_weight_is_one_unless_given():
    assert Term(Squares()).weight == 1.0


def test_a_term_goes_by_the_file_of_its_objective():
    kind = type("Elsewhere", (Squares,), {"__module__": "limbeck.objectives.response.kd"})
    assert Term(kind()).name == "kd"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), Decay(start=-1)])
def test_a_weight_that_cannot_be_meant_is_refused(weight: Number):
    with pytest.raises(RecipeError, match=r"the weight of an objective is .*; it must be a finite number of zero or more"):
        Term(Squares(), weight)


def test_an_objective_ships_the_student_itself():
    student = nn.Linear(1, 1)
    assert Squares().graft(student) is student


@pytest.mark.parametrize("kind", [Objective, Scheme])
def test_the_base_classes_are_abstract(kind: type):
    with pytest.raises(TypeError, match="abstract"):
        kind()


def test_the_clock_of_one_objective_is_not_that_of_another():
    first, second = Squares(temperature=Linear(start=1, end=3)), Squares(temperature=Linear(start=1, end=3))
    first.clock = Clock(1, 2)
    assert first.now(first.temperature) == 2
    assert second.now(second.temperature) == 1
    assert copy.deepcopy(first).clock == Clock(1, 2)


def test_the_scheme_s_clock_reaches_nested_objectives():
    plain, wrapped = Squares(temperature=Linear(start=1, end=3)), Squares(temperature=Linear(start=4, end=2))
    wrapped.add_module("inner", Squares())
    scheme = Toy([1.0 * plain, 0.5 * wrapped])
    scheme.at(5, 10)
    assert plain.now(plain.temperature) == 2
    assert wrapped.now(wrapped.temperature) == 3
    assert wrapped.get_submodule("inner").clock == Clock(5, 10)
    scheme.at(10, 10)
    assert plain.now(plain.temperature) == 3


def test_the_loss_is_the_mean_over_valid_predictions():
    torch.manual_seed(0)
    scheme = Toy([0.9 * Squares(), 0.1 * Squares(temperature=2.0)])
    whole, part = batch([True, True, False, True]), batch([True, True, True, True])
    kept = {name: tensor[[0, 1, 3]] for name, tensor in part.items()}
    assert torch.allclose(scheme(whole).loss, scheme(kept).loss)
    naive = [(0.9 + 0.1 / 4) * (scheme.student(kept["input"][i]) - kept["target"][i]).square().mean() for i in range(3)]
    assert torch.allclose(scheme(whole).loss, torch.stack(naive).mean())


def test_no_valid_prediction_costs_nothing_and_keeps_a_graph():
    scheme = Toy([0.9 * Squares()])
    loss = scheme(batch([False, False])).loss
    assert loss.item() == 0
    loss.backward()
    assert scheme.student.weight.grad is not None
    assert not scheme.student.weight.grad.any()


def test_the_loss_of_several_players_is_refused():
    losses = Losses({"student": torch.zeros(()), "critic": torch.zeros(())}, torch.tensor(1.0))
    with pytest.raises(MismatchError, match=r"players student, critic has no single loss: take `sums\[player\] / count`"):
        _ = losses.loss
