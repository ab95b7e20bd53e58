"""What an objective holds by reference."""

from typing import Any, Generic, Self, TypeVar

__all__ = ["Held"]

T = TypeVar("T")


class Held(Generic[T]):
    """Something of somebody else's, a task or layers of the teacher: no submodule of who holds it, in nobody's parameters, and shared by copies."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
