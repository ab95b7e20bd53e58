"""Two answers of whatever form, as one loss for each prediction. Shapes: every axis but the last counts predictions."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Hidden, Knowledge, Response, TopK

from ._streaming import streamed

__all__ = ["compared"]


def compared(student: Knowledge, theirs: Response | None, labels: Tensor | None = None, **how: Any) -> Tensor:
    """Return `streamed`'s loss of every prediction that the student's mask lets count, and zero elsewhere; `how` is what `streamed` takes.

    Answers as whole logits are taken as they are, and so is the teacher's in any form; predictions that do not count are left out before anything is computed.
    """
    ours = student.answer
    if isinstance(ours, TopK):
        raise MismatchError(f"the student's answer is {ours}, which nothing can be learnt from: give its logits, or its states and head")
    if theirs is not None and theirs.predictions != ours.predictions:
        raise MismatchError(
            f"the student answers {list(ours.predictions)} predictions and the teacher {list(theirs.predictions)}: ask both about the same batch"
        )
    if student.mask is None:
        flat = None if labels is None else labels.flatten()
        return streamed(_rows(ours, None), None if theirs is None else _rows(theirs, None), flat, **how).unflatten(0, ours.predictions)
    chosen = student.mask
    losses = streamed(_rows(ours, chosen), None if theirs is None else _rows(theirs, chosen), None if labels is None else labels[chosen], **how)
    return losses.new_zeros(chosen.shape).masked_scatter(chosen, losses)


def _rows(answer: Any, chosen: Tensor | None) -> Any:
    """An answer's chosen predictions in a row, all of them where `chosen` is None."""

    def row(values: Tensor, behind: int) -> Tensor:
        return values[chosen] if chosen is not None else values.flatten(0, -1 - behind)

    if isinstance(answer, TopK):
        return replace(answer, log_probs=row(answer.log_probs, 1), indices=row(answer.indices, 1), log_tail=row(answer.log_tail, 0))
    return replace(answer, states=row(answer.states, 1)) if isinstance(answer, Hidden) else replace(answer, logits=row(answer.logits, 1))
