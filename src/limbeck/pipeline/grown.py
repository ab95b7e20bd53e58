"""A model that goes on where there are more classes than it was made for, and a fresh one that begins with what fits of another."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.task import Facts

from .resolve import make_model

__all__ = ["begun", "grown"]


def grown(model: nn.Module, spec: Mapping[str, Any], facts: Facts) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return a model with an answer for each of the task's classes, and its spec; the model itself where it has them.

    It is built anew with more classes. A tensor of the same shape is taken over; of one that grew along its first axis the first rows are, and the others stay
    as they were drawn. The classes that it knows, by name, must be the first of the task's.

    Raises:
        MismatchError: other classes, or a model that does not grow that way.
    """
    known, wanted = spec["classes"], facts.classes
    if known >= wanted:
        return model, spec
    old, first = [str(one) for one in spec.get("class_names", ())], list(facts.class_names[:known])
    if old and old != first:
        raise MismatchError(
            f"`init` is a model of the classes {', '.join(old)}, and the task's begin with {', '.join(first)}: a model grows behind what it knows"
        )
    if spec.get("builder") is None:
        raise MismatchError(f"`init` is a model of {known} classes that limbeck did not build, and the task has {wanted}: it cannot grow")
    told = {**spec, "classes": wanted, "class_names": facts.class_names}
    wider = make_model(told)
    weights, before = wider.state_dict(), model.state_dict()
    for name, value in weights.items():
        had = before[name] if name in before else value.new_empty(0)
        if had.shape == value.shape:
            value.copy_(had)
        elif had.ndim == value.ndim and had.shape[1:] == value.shape[1:] and len(had) == known and len(value) == wanted:
            value[:known].copy_(had)
        else:
            raise MismatchError(
                f"`init` has {name!r} of shape {list(had.shape)}, and for {wanted} classes it would be {list(value.shape)}: "
                "a model grows along the first axis of its head alone"
            )
    return wider.train(model.training), told


def begun(model: nn.Module, start: nn.Module, name: str) -> str:
    """Give a fresh model every tensor of `start` that has the same name and shape, and say which part of it stays as it was drawn.

    Raises:
        MismatchError: nothing fits.
    """
    weights, before = model.state_dict(), start.state_dict()
    fits = [one for one, value in weights.items() if one in before and before[one].shape == value.shape]
    if not fits:
        near = next(iter(before), "nothing")
        raise MismatchError(
            f"the model begins with what fits of {name}, and no weight of it does: {type(model).__name__} has {next(iter(weights), 'nothing')}, ..., and "
            f"{type(start).__name__} {near}, ...: take a model of the same kind and sizes, or leave `init` out"
        )
    for one in fits:
        weights[one].copy_(before[one])
    fresh = [one for one in weights if one not in fits]
    told = f"; fresh are {', '.join(fresh[:4])}{f' and {len(fresh) - 4} more' if len(fresh) > 4 else ''}" if fresh else ""
    return f"begins with {len(fits)} of {len(weights)} tensors of {name}{told}"
