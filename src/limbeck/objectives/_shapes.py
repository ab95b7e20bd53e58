"""Two features that are compared element by element."""

from torch import Tensor

from limbeck.core.errors import MismatchError

__all__ = ["check_alike"]


def check_alike(student: Tensor, teacher: Tensor, *, how: str = "project") -> None:
    """Refuse features of unequal shapes, which would broadcast; `how` the objective brings them together, for the message."""
    if student.shape != teacher.shape:
        raise MismatchError(f"the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}: {how} the one to the other's shape first")
