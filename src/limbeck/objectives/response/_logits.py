"""Two sides of logits that fit each other. Shapes: C classes; every other axis counts predictions."""

from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Hidden, Knowledge, Link, TopK
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

__all__ = ["check_fit", "check_link", "divergence", "prepared", "rows"]

_COMPARES: dict[Link, str] = {
    "softmax": "probabilities over classes (softmax)",
    "bernoulli": "yes-or-no answers (bernoulli)",
    "identity": "real numbers (identity)",
}
_FITS: dict[Link, str] = {"softmax": "response.kd", "bernoulli": "response.bernoulli_kd", "identity": "response.regression_kd"}


def check_fit(objective: nn.Module, student: Knowledge, teacher: Knowledge | None, *, link: Link | None, topk: bool = False) -> None:
    """Refuse two models whose answers cannot be compared class by class, or are not of the kind that is compared; None stands for any.

    `topk`: whether the teacher's likeliest classes are enough.
    """
    name, ours, theirs = type(objective).__name__, student.answer, given(objective, teacher).answer
    if isinstance(theirs, TopK) and not topk:
        raise MismatchError(
            f"{name} reads whole logits, and the teacher's answer is {theirs}: use response.kd or response.soft_cross_entropy, or record whole logits "
            "(keep: {kind: dense})"
        )
    streams = isinstance(ours, Hidden)  # whose vocabulary may be padded
    if ours.classes != theirs.classes and not streams:
        raise MismatchError(
            f"{name} compares answers class by class: the student has {ours.classes} classes, the teacher {theirs.classes}; "
            "give both the same classes, or match features (feature.fitnet)"
        )
    if ours.link != theirs.link:
        raise MismatchError(
            f"{name} compares like with like: the student's answers are {ours.link}, the teacher's {theirs.link}; use models of one kind of task"
        )
    if link is not None:
        check_link(objective, student, link)


def check_link(objective: nn.Module, student: Knowledge, link: Link) -> None:
    """Refuse answers that are not of the kind that is compared."""
    found = student.answer.link
    if found != link:
        raise MismatchError(
            f"{type(objective).__name__} compares {_COMPARES[link]} and the models' answers are {found}: use {_FITS[found]}, or response.logit_matching for any"
        )


def prepared(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides in float32 at least, the teacher's cut off from its graph; refuse unequal shapes, which would broadcast."""
    if student_logits.shape != teacher_logits.shape:
        raise MismatchError(
            f"the student's logits are {list(student_logits.shape)} and the teacher's {list(teacher_logits.shape)}: "
            "both must answer the same batch with the same classes"
        )
    return at_least_float32(student_logits), at_least_float32(teacher_logits.detach())


def divergence(log_p: Tensor, log_q: Tensor, *, factor: float = 1.0) -> Tensor:
    """Return `factor` KL(p || q) over the last axis of log-probabilities; p has no gradient."""
    p = log_p.exp()
    gap = (log_p - log_q).masked_fill_(p == 0, 0.0)  # 0 log(0 / q) = 0, whatever q
    return (gap * (p * factor)).sum(-1)  # the factor meets p, which has no gradient: one step less to go back


def rows(student: Knowledge, teacher: Knowledge) -> tuple[Tensor, Tensor]:
    """Return the logits of the predictions that count, `[M, C]` of each side, for an objective that compares predictions with each other."""
    ours, theirs = student.main.logits, teacher.main.logits
    if ours.shape != theirs.shape:
        prepared(ours, theirs)
    if student.mask is not None:
        return ours[student.mask], theirs[student.mask]
    return ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, theirs.shape[-1])
