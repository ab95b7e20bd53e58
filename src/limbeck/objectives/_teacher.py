"""The teacher's side of an objective."""

from collections.abc import Sequence

from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge

from ._held import Held

__all__ = ["given", "layers_of"]


def given(objective: nn.Module, teacher: Knowledge | None) -> Knowledge:
    """Return what the teacher says, or say that there must be one."""
    if teacher is None:
        raise MismatchError(
            f"{type(objective).__name__} needs a teacher and there is none: give the stage a teacher, or train with the objective supervised alone"
        )
    return teacher


def layers_of(objective: nn.Module, teacher: Knowledge, paths: Sequence[str]) -> Held[tuple[nn.Module, ...]]:
    """Return layers of the teacher that an objective calls, in the order of `paths`."""
    missing = [path for path in paths if path not in teacher.modules]
    if missing:
        raise MismatchError(
            f"{type(objective).__name__} calls the teacher's layer {missing[0]!r}, which this teacher does not hand over: teach by one frozen model"
        )
    return Held(tuple(teacher.modules[path] for path in paths))
