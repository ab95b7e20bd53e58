"""What an ensemble asks of each of its members, and what it cannot be made of."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.teacher import Teacher

__all__ = ["check_classes", "check_weights", "common_views", "known_of", "shared_out"]


def check_weights(weights: Sequence[float], members: int) -> None:
    """Refuse weights that are not one for each member, or no weights."""
    if len(weights) != members:
        raise RecipeError(f"{len(weights)} weights for {members} teachers: give one each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise RecipeError(f"the weights of an ensemble are {list(weights)}: they must be finite, zero or more, and not all zero")


def check_classes(classes: Sequence[Sequence[int]], weights: Sequence[float]) -> None:
    """Refuse maps into the union that are not one for each member, name a class twice, or leave one that nobody who counts knows."""
    if len(classes) != len(weights):
        raise RecipeError(f"classes names those of {len(classes)} teachers, and there are {len(weights)}: give a list for each")
    for index, known in enumerate(classes):
        if not known or min(known) < 0:
            raise RecipeError(f"the classes of member {index} are {list(known)}: they are numbers of the union's classes, from 0")
        if len(set(known)) != len(known):
            raise RecipeError(f"the classes of member {index} are {list(known)}: each output is a class of its own")
    heard = {one for known, weight in zip(classes, weights, strict=True) if weight > 0 for one in known}
    unknown = sorted(set(range(1 + max(one for known in classes for one in known))) - heard)
    if unknown:
        raise RecipeError(f"class {unknown[0]} is known to no member of the ensemble whose weight is above zero: number the union's classes without a gap")


def known_of(classes: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Who knows which class of the union, `[M, C]`."""
    known = torch.zeros(len(classes), 1 + max(one for told in classes for one in told), dtype=torch.bool, device=device)
    for row, told in zip(known, classes, strict=True):
        row[list(told)] = True
    return known


def common_views(members: Sequence[Teacher]) -> int | None:
    """How many draws of the augmentation all members know the answers to."""
    found = sorted({member.views for member in members if member.views is not None})
    if len(found) > 1:
        raise MismatchError(f"the members of an ensemble know {' and '.join(map(str, found))} views of each example: store the same number for all")
    return found[0] if found else None


def shared_out(reads: Reads, members: int) -> list[Reads]:
    """Return what is read of each member; what begins with a member's number and a dot is read of that one."""
    if reads.shapes:
        raise MismatchError("the layers of an ensemble are not paired by themselves: name them, layers: {layer3: 0.layer3} (student's: member's)")
    if reads.input_gradient:
        raise MismatchError("an ensemble has no one gradient by its input: drop that objective, or teach from one of its members ({kind: frozen})")
    for path in sorted(reads.features | reads.modules):
        number, dot, rest = path.partition(".")
        if not (dot and rest and number.isdecimal()):
            raise MismatchError(f"an ensemble has no single layer {path}: name a member's, 0.{path} for the first ({{layer3: 0.layer3}})")
        if int(number) >= members:
            raise MismatchError(f"{path} is a layer of member {number}, and the ensemble's members are 0 to {members - 1}: name one of theirs")
    outputs = frozenset(name for name in reads.outputs if not name.isdecimal())
    return [Reads(outputs, _own(reads.features, index), _own(reads.modules, index)) for index in range(members)]


def _own(paths: frozenset[str], index: int) -> frozenset[str]:
    return frozenset(path.partition(".")[2] for path in paths if int(path.partition(".")[0]) == index)
