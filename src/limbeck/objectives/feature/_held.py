"""Layers of the teacher that an objective calls."""

from collections.abc import Sequence
from typing import Any, Self

from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge

__all__ = ["Held"]


class Held:
    """Layers of the teacher held by reference: no submodules of who holds them, in nobody's parameters, shared by copies."""

    def __init__(self, objective: nn.Module, teacher: Knowledge, paths: Sequence[str]) -> None:
        missing = [path for path in paths if path not in teacher.modules]
        if missing:
            raise MismatchError(
                f"{type(objective).__name__} calls the teacher's layer {missing[0]!r}, which this teacher does not hand over: teach by one frozen model"
            )
        self.modules = tuple(teacher.modules[path] for path in paths)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
