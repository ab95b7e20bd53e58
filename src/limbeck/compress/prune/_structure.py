"""What structural surgeries have in common: score units, choose those that go until a target is met, cut them out, and check what is left."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.bridges.torch_pruning import Ask, Port
from limbeck.compress._method import Bench, Operated, Saliency
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.tap import check_paths

from ._budget import Target, Wish, search, wish
from ._groups import Family, check_groups, keeps
from ._shapes import channels_of, narrow, shapes_record
from ._structure_check import check_answers, check_ties
from ._structure_choice import Chooser, Scope
from ._structure_scores import Normalize, Weighed, scores
from .saliency._named import named

__all__ = ["Plan", "RoundTo", "asking", "operated", "plan", "unskipped"]

RoundTo = int | Literal["auto"]

_PROBED = (4, 8, 16)
"""The multiples among which the fastest is looked for."""


@dataclass(frozen=True)
class Plan:
    """How a structural surgery chooses, its options checked."""

    part: str
    target: Wish
    saliency: Saliency
    scope: Scope
    normalize: Normalize
    weighed: Weighed
    least: int
    round_to: RoundTo


def plan(
    part: str,
    *,
    target: Target,
    saliency: str | Mapping[str, Any],
    scope: Scope,
    normalize: Normalize,
    weighed: Weighed,
    least: int,
    round_to: RoundTo,
) -> Plan:
    """Return a surgery's options as a plan.

    Raises:
        RecipeError: an option that cannot be meant.
    """
    for name, value, choices in (("scope", scope, get_args(Scope)), ("normalize", normalize, get_args(Normalize)), ("weighed", weighed, get_args(Weighed))):
        if value not in choices:
            raise RecipeError(f"no choice {value!r} for {name} of {part}{did_you_mean(value, choices)}")
    for name, value in (("least", least), ("round_to", 1 if round_to == "auto" else round_to)):
        if value < 1:
            raise RecipeError(f"{name} of {part} is {value}; it counts units, one or more")
    return Plan(part, wish(target, part), named(saliency), scope, normalize, weighed, least, round_to)


def asking(bench: Bench) -> Ask:
    """Return what asks a model about two training examples, by the task: all its answers' logits."""
    batch = next(bench.batches(2), None)
    if batch is None:
        raise DataError("the training split gave no batch: pruning runs the model on two examples to see what hangs together")

    def ask(model: nn.Module) -> list[Tensor]:
        said = bench.task.forward(model, batch)
        return [said.whole(name).logits for name in said.outputs]

    return ask


def unskipped(model: nn.Module, found: Iterable[Family], skip: Sequence[str]) -> list[Family]:
    """Return the families none of whose layers is, or lies in, one of those to skip.

    Raises:
        RecipeError: a path that the model has not.
    """
    check_paths(model, skip, "model")
    return [family for family in found if not any(f"{path}.".startswith(f"{spared}.") for path in family.gives for spared in skip)]


def operated(model: nn.Module, found: Sequence[Family], whole: Mapping[str, str], ask: Ask, bench: Bench, how: Plan) -> Operated:
    """Prune the units of families until the plan's target is met; `whole` are layers of which some or all channels stay, with why.

    Raises:
        RecipeError: a target that cannot be reached, with the closest that can.
        MismatchError: nothing to prune, or a layer at which pruning goes wrong, named.
    """
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise MismatchError(f"{path!r} is parametrized, so that its weight has no channels of its own: make the model plain before it is pruned")
    for family in found:
        check_groups(model, family)
    able = [family for family in found if family.units > 1]
    if not able:
        why = "; ".join(f"{path}: {reason}" for path, reason in whole.items()) or "it has no layers of that kind with two units or more"
        raise MismatchError(f"{how.part} finds nothing to prune in {type(model).__name__}: {why}; a language model is made narrower by prune.width")
    _check(model, [(family, torch.tensor([family.units // 2])) for family in able], ask)  # before anything that takes long
    judged, unknown = scores(model, able, how.saliency, how.weighed, how.normalize, bench)
    chooser = Chooser(judged, how.scope, how.least)
    removed, told = _chosen(model, chooser, bench, how)
    made = _check(model, removed, ask)
    reasons = {**whole, **{path: f"{type(how.saliency).__name__} says nothing about it" for family in unknown for path in family.gives}}
    left = chooser.units - sum(len(gone) for _, gone in removed)
    said = [f"{left} of {chooser.units} units are left{told}", *_told(reasons)]
    return Operated(made, {"layers": shapes_record(model, made)}, {"units": chooser.units, "units_left": left}, _rows(model, made, able, reasons), said)


def _cut(model: nn.Module, keep: Mapping[Port, Tensor]) -> nn.Module:
    made = copy.deepcopy(model)
    narrow(made, keep)
    return made


def _check(model: nn.Module, removed: Sequence[tuple[Family, Tensor]], ask: Ask) -> nn.Module:
    """Return the model without some units, once it was seen to compute what it should."""
    keep = keeps(model, removed)
    check_ties(model, keep)
    made = _cut(model, keep)
    check_answers(model, made, keep, ask)
    return made


def _chosen(model: nn.Module, chooser: Chooser, bench: Bench, how: Plan) -> tuple[list[tuple[Family, Tensor]], str]:
    """The units that go, and what to say of it."""
    asked, told = how.target, ""
    if how.round_to != "auto":
        multiple = how.round_to
    elif asked.goal == "latency":
        multiple, told = _probe(model, chooser, bench)
    else:
        multiple = 1

    def cost(step: int) -> float:
        removed = chooser.at(step, multiple)
        if asked.goal == "ratio":
            return chooser.units - sum(len(gone) for _, gone in removed)
        return asked.count(_cut(model, keeps(model, removed)), bench)

    way = "ask for less, let fewer units stay (least, round_to), or prune more layers"
    step, share = search(asked, chooser.steps, cost, way)
    found = "" if asked.goal == "ratio" else f"; {share:.3g} of its {asked.goal} stays, {asked.share:g} was asked for"
    return chooser.at(step, multiple), f"{found}{told}"


def _probe(model: nn.Module, chooser: Chooser, bench: Bench) -> tuple[int, str]:
    """The multiple of channels that this machine runs fastest, for what is computed: measured on the model when half of what may go is gone."""
    speed: dict[int, float] = {}
    for multiple in _PROBED:
        made = _cut(model, keeps(model, chooser.at(chooser.steps // 2, multiple)))
        speed[multiple] = bench.macs(made) / bench.latency_ms(made)
    best = max(speed, key=lambda multiple: speed[multiple])
    figures = ", ".join(f"{multiple}: {one / 1e6:.3g}" for multiple, one in speed.items())
    return best, f"; units left are multiples of {best}, which ran fastest here (million MACs a millisecond by multiple: {figures})"


def _rows(before: nn.Module, after: nn.Module, found: Sequence[Family], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each layer that was looked at: how many channels it had, how many are left, and why it keeps what it keeps."""
    ports = {port.path: port for family in found for port in family.places if port.path in family.gives and port.side != "in"}
    rows: list[dict[str, Any]] = []
    for path, _ in before.named_modules():
        if path in ports:
            why = {"why": reasons[path]} if path in reasons else {}
            rows.append({"name": path, "channels": channels_of(before, ports[path]), "left": channels_of(after, ports[path]), **why})
        elif path in reasons:
            channels = channels_of(before, Port(path, "out"))
            rows.append({"name": path, "channels": channels, "left": channels, "why": reasons[path]})
    return rows


def _told(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason for which layers keep channels, but that they are the model's answer."""
    by: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        by.setdefault(reason, []).append(path)
    by.pop("it is what the model answers", None)
    named = {reason: ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "") for reason, paths in by.items()}
    return [f"{paths} {'stay' if len(by[reason]) > 1 else 'stays'} whole or in part: {reason}" for reason, paths in named.items()]
