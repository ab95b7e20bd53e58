"""Players that a scheme makes itself, beside the student that it is given."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.objective import Contest, Objective, Term
from limbeck.core.task import Facts
from limbeck.core.teacher import Teacher

__all__ = ["begun_anew", "check_lessons", "like", "made"]


@torch.no_grad()
def begun_anew(model: nn.Module) -> nn.Module:
    """Return a copy of a model that begins elsewhere: the entries of each learning parameter in another random order.

    So the weights come from the distribution that the model's own were drawn from, whatever drew them; what is constant (biases of zero, norms of one) stays.
    """
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        if parameter.requires_grad:
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def made(told: Mapping[str, Any], facts: Facts | None, whose: str) -> nn.Module:
    """Build a model as a recipe writes it, for the data that `facts` tell of.

    Raises:
        RecipeError: no kind, or options that the model has not.
        MismatchError: no facts.
    """
    if "kind" not in told:
        raise RecipeError(f"{whose} names no kind of model: write it as a recipe's model, such as {{kind: cnn, width: 8}}")
    if facts is None:
        raise MismatchError(f"{whose} is built for the data's shape and classes: give the scheme facts=task.facts(), or {whose} as a module")
    options = {name: value for name, value in told.items() if name != "kind"}
    return build("models", told["kind"], options, in_shape=facts.in_shape, classes=facts.classes)


def like(student: nn.Module, other: nn.Module) -> nn.Module:
    """Put a model where the student is, and lay it out as the student is: by channels last where that is so."""
    ours = next(student.parameters(), None)
    if ours is None:
        return other
    laid = any(one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous() for one in student.parameters())
    return other.to(ours.device, memory_format=torch.channels_last) if laid else other.to(ours.device)  # pyright: ignore[reportCallIssue]


def check_lessons(scheme: str, teacher: "nn.Module | Teacher | None", terms: Sequence[Term]) -> None:
    """Refuse what those who learn together cannot mean.

    Raises:
        MismatchError: a finished teacher beside them, a discriminator, or an objective that puts a part of its teacher into the student.
        RecipeError: no objective that asks a teacher.
    """
    if teacher is not None:
        raise MismatchError(f"in {scheme} nobody teaches but those who learn: leave the teacher out (a stage of kind train), or take scheme: {{kind: offline}}")
    for term in terms:
        if isinstance(term.objective, Contest):
            raise MismatchError(
                f"the objective {term.name} is a contest with an opponent of its own, which {scheme} has no phase for: take scheme: {{kind: offline}}"
            )
        if type(term.objective).graft is not Objective.graft:
            raise MismatchError(
                f"the objective {term.name} puts a part of a finished teacher into the student, and {scheme} has none: take scheme: {{kind: offline}}"
            )
    if terms and not any(term.objective.undecided or term.objective.needs.teacher is not None for term in terms):
        told = ", ".join(term.name for term in terms)
        raise RecipeError(f"{scheme} with the objectives {told} teaches nobody: add one that asks a teacher, such as {{kind: response.kd, temperature: 1.0}}")
