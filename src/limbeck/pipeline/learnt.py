"""What objectives learn beside the student: taken over from an earlier stage, or grafted into what ships."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError, MismatchError
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Scheme
from limbeck.core.task import Facts, default_task

from .recipe import ObjectiveSpec, TrainStage

__all__ = ["graft_spec", "grafted", "objectives_of", "take_over"]


def objectives_of(scheme: Scheme) -> list[Objective]:
    """Return a scheme's objectives, in the order of the stage that names them; what a scheme has of its own comes after these."""
    return [module.objective for module in scheme.modules() if isinstance(module, Term)]


def _named(scheme: Scheme, specs: Sequence[ObjectiveSpec]) -> list[tuple[ObjectiveSpec, Objective]]:
    """What a stage says of its objectives, each with the objective itself; nothing for a scheme that brings its own losses and holds no objective."""
    found = objectives_of(scheme)
    assert not found or len(found) >= len(specs), f"{type(scheme).__name__} holds {len(found)} objectives, and its stage names {len(specs)}: all or none"
    return list(zip(specs, found[: len(specs)], strict=True)) if found else []


def take_over(scheme: Scheme, specs: Sequence[ObjectiveSpec], sources: Mapping[str, tuple[TrainStage, Artifact]]) -> list[str]:
    """Load what an earlier stage's objective learnt into each objective that says `init`; return a line for each.

    Raises:
        MismatchError: that stage has no such objective, or more than one, or one of other shapes, or the scheme here has none.
        ArtifactError: its training state is not there.
    """
    from .modules import read_tensors

    said: list[str] = []
    held = _named(scheme, specs)
    if not held and (lost := next((spec for spec in specs if spec.init), None)):
        raise MismatchError(f"{lost.kind} takes over what stage {lost.init!r} learnt, and {type(scheme).__name__} brings its own losses: leave `init` out")
    for spec, objective in held:
        if spec.init is None:
            continue
        stage, artifact = sources[spec.init]
        kind = lookup.full_name("objectives", spec.kind)
        places = [at for at, one in enumerate(stage.objectives) if lookup.full_name("objectives", one.kind) == kind]
        if len(places) != 1:
            raise MismatchError(f"{kind} takes over what stage {spec.init!r} learnt, which has {len(places)} objectives of that kind: it must have one")
        files = sorted((artifact.path / "checkpoint").glob("*/state.safetensors"))
        if not files:
            raise ArtifactError(f"{artifact.path} holds no training state: delete it and run the recipe again")
        start = f"scheme.terms.{places[0]}.objective."
        found = {name.removeprefix(start): value for name, value in read_tensors(files[-1]).items() if name.startswith(start)}
        try:
            unknown = objective.load_state_dict(found, strict=False).unexpected_keys  # what is not there is learnt here
        except RuntimeError as error:
            raise MismatchError(f"what {kind} learnt in stage {spec.init!r} does not fit: {' '.join(str(error).split())}") from None
        if unknown or not found:
            why = f"it has no {unknown[0]}" if unknown else "nothing was learnt there"
            raise MismatchError(f"{kind} cannot begin with what stage {spec.init!r} learnt: {why}")
        said.append(f"{kind} begins with what stage {spec.init} learnt")
    return said


def graft_spec(scheme: Scheme, specs: Sequence[ObjectiveSpec], teachers: Sequence[Artifact]) -> dict[str, Any] | None:
    """Return how to graft again what objectives have put into the student that ships, None where they put nothing."""
    grafting = [spec for spec, one in _named(scheme, specs) if type(one).graft is not Objective.graft]
    if not grafting:
        return None
    if len(teachers) != 1:
        raise MismatchError(f"{grafting[0].kind} puts a part of the teacher into the student, and there are {len(teachers)} teachers: give one")
    return {"objectives": [{"kind": spec.kind, "options": spec.options} for spec in grafting], "teacher": dict(teachers[0].spec)}


def grafted(student: nn.Module, teacher: nn.Module, told: Mapping[str, Any], facts: Facts) -> nn.Module:
    """Graft again, with fresh weights, what `graft_spec` told of."""
    objectives = [lookup.build("objectives", one["kind"], one["options"]) for one in told["objectives"]]
    example = {"input": torch.zeros(2, *facts.in_shape), "label": torch.zeros(2, dtype=torch.int64), "id": torch.arange(2)}
    scheme: Scheme = lookup.build("schemes", "offline", {}, student, teacher, objectives, default_task(), example, facts)
    return scheme.shipped()["student"]
