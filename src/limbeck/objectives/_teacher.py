"""The teacher's side of an objective."""

from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge

__all__ = ["given"]


def given(objective: nn.Module, teacher: Knowledge | None) -> Knowledge:
    """Return what the teacher says, or say that there must be one."""
    if teacher is None:
        raise MismatchError(
            f"{type(objective).__name__} needs a teacher and there is none: give the stage a teacher, or train with the objective supervised alone"
        )
    return teacher
