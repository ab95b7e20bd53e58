"""From ranks asked for to a model with thinner layers: what all factorizations do alike."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.compress._method import Bench, Operated
from limbeck.core.errors import ArtifactError, RecipeError

from ._choose import Asked, Guess, choose, mean_loss
from ._form import Form, Made, Target, whole
from ._layers import install, replaced, survey
from ._ranks import Sensitivity

__all__ = ["factorized", "rebuilt"]


def factorized(model: nn.Module, bench: Bench, found: Sequence[Target], form: Form, asked: Asked, guess: Guess | None = None) -> Operated:
    """Choose the ranks of the layers found, replace them, and tell what was done.

    Raises:
        RecipeError: what is asked cannot be reached, with the closest that can; ranks that a layer has not.
        MismatchError: the model does not run with a layer replaced.
    """
    before = bench.macs(model)
    looked = survey(model, found, bench)
    able = [one for one in looked if not one.refusal]
    choice = choose(model, bench, able, form, asked, guess, before)
    chosen, left, figures = choice.ranks, choice.left, dict(choice.figures)
    if not chosen:
        raise RecipeError(f"no layer gets smaller: {_grouped(left)}")
    made = {one.path: form.made(one, chosen[one.path]) for one in able if one.path in chosen}
    count = sum(held.numel() for held in model.parameters())
    with replaced(model, {path: new.module for path, new in made.items()}, bench) as changed:
        after, macs = sum(held.numel() for held in changed.parameters()), bench.macs(changed)
        if isinstance(asked, Sensitivity):
            figures["loss_rise_measured"] = mean_loss(changed, bench, asked.examples) - figures.pop("loss_before")
    why = {one.path: one.refusal for one in looked if one.refusal} | left
    shares = {"parameters_share": after / count, "macs_share": macs / before if before else math.nan}
    return Operated(
        changed,
        {"layers": {path: list(chosen[path]) for path in made}},
        {"factorized_layers": float(len(made)), **shares, **figures},
        [_row(one, form, made.get(one.path), chosen.get(one.path), why.get(one.path, "")) for one in looked],
        [
            f"{len(made)} of {len(looked)} layers factorized: {after:,} of {count:,} parameters and {macs:,} of {before:,} MACs are left",
            *([f"left as they are: {_grouped(why)}"] if why else []),
            *(f"{path}: {line}" for path, new in made.items() for line in new.said),
        ],
    )


def rebuilt(
    model: nn.Module, record: Mapping[str, Any], kinds: tuple[type[nn.Module], ...], empty: Callable[[nn.Module, Sequence[int]], nn.Module]
) -> nn.Module:
    """Return the model with an empty layer of the recorded ranks at every recorded path.

    Raises:
        ArtifactError: a record of another model.
    """
    there = dict(model.named_modules())
    for path, ranks in record["layers"].items():
        if path not in there:
            raise ArtifactError(f"the artifact has a factorized layer {path!r} and its model has none: it was made by another version")
        if type(there[path]) not in kinds:
            raise ArtifactError(f"the artifact has factorized a layer that is a {type(there[path]).__name__} at {path!r}: it was made by another version")
        model = install(model, path, empty(there[path], ranks))
    return model


def _row(target: Target, form: Form, made: Made | None, ranks: Sequence[int] | None, why: str) -> dict[str, Any]:
    parameters, macs = whole(target)
    row: dict[str, Any] = {"name": target.path, "weights": int(parameters), "macs": round(macs)}
    if made is None or ranks is None:
        return row | {"left": why}
    cost = form.cost(target, torch.tensor([list(ranks)]))
    kept = {"rank": " x ".join(map(str, ranks)), "of": " x ".join(map(str, form.full(target))), "energy_kept": made.kept}
    return row | {"weights_after": int(cost.parameters), "macs_after": round(float(cost.macs))} | kept


def _grouped(left: Mapping[str, str]) -> str:
    """Paths by why they are left."""
    by: dict[str, list[str]] = {}
    for path, why in left.items():
        by.setdefault(why, []).append(path or "the model itself")
    return "; ".join(f"{', '.join(paths)} ({why})" for why, paths in by.items())
