"""Two sides of logits that fit each other. Shapes: C classes; every other axis counts predictions."""

from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

__all__ = ["check_fit", "prepared"]


def check_fit(objective: nn.Module, student: Knowledge, teacher: Knowledge | None, *, softmax: bool) -> None:
    """Refuse two models whose answers cannot be compared class by class; with `softmax`, also answers that are no choice of one class."""
    name, ours, theirs = type(objective).__name__, student.main, given(objective, teacher).main
    if ours.classes != theirs.classes:
        raise MismatchError(
            f"{name} compares answers class by class: the student has {ours.classes} classes, the teacher {theirs.classes}; "
            "give both the same classes, or match features (feature.fitnet)"
        )
    if ours.link != theirs.link:
        raise MismatchError(
            f"{name} compares like with like: the student's answers are {ours.link}, the teacher's {theirs.link}; use models of one kind of task"
        )
    if softmax and ours.link != "softmax":
        raise MismatchError(f"{name} compares probabilities over classes (softmax) and both models' answers are {ours.link}: use response.logit_matching")


def prepared(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides in float32 at least, the teacher's cut off from its graph; refuse unequal shapes, which would broadcast."""
    if student_logits.shape != teacher_logits.shape:
        raise MismatchError(
            f"the student's logits are {list(student_logits.shape)} and the teacher's {list(teacher_logits.shape)}: "
            "both must answer the same batch with the same classes"
        )
    return at_least_float32(student_logits), at_least_float32(teacher_logits.detach())
