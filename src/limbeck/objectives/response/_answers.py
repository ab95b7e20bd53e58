"""Two answers of whatever form, as one loss for each prediction. Shapes: every axis but the last counts predictions."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Response, TopK

from ._streaming import Way, planned, streamed
from ._streaming_passes import fused

__all__ = ["compared", "told"]


def compared(student: Knowledge, theirs: Response | None, labels: Tensor | None = None, **how: Any) -> Tensor:
    """Return `streamed`'s loss of every prediction that the student's mask lets count, and zero elsewhere; `how` is what `streamed` takes.

    Answers as whole logits are taken as they are, and so is the teacher's in any form; predictions that do not count are left out before anything is computed
    (how many they are is the one thing that is waited for on a GPU).

    Raises:
        MismatchError: answers that do not fit.
    """
    ours = _learnt(student)
    if theirs is not None and theirs.predictions != ours.predictions:
        raise MismatchError(
            f"the student answers {list(ours.predictions)} predictions and the teacher {list(theirs.predictions)}: ask both about the same batch"
        )
    for name, each in (("labels", labels), ("mask", student.mask), ("weights", how.get("weights"))):
        if each is not None and each.shape != ours.predictions:
            raise MismatchError(f"the student answers {list(ours.predictions)} predictions and the {name} are {list(each.shape)}: one is needed for each")
    chosen = student.mask
    if chosen is not None and chosen.device.type == "cpu" and not torch.compiler.is_compiling() and bool(chosen.all()):
        chosen = None  # nothing is left out, and nothing need be copied
    if how.get("weights") is not None:
        how["weights"] = _row(how["weights"], chosen, 0)
    labels = None if labels is None else _row(labels, chosen, 0)
    losses = streamed(_rows(ours, chosen), None if theirs is None else _rows(theirs, chosen), labels, **how)
    return losses.reshape(ours.predictions) if chosen is None else losses.new_zeros(chosen.shape).masked_scatter(chosen, losses)


def told(student: Knowledge, theirs: Response | None, *, budget: int | None = None, way: Way | None = None) -> str | None:
    """Return how `compared` would compute the loss of these answers, in a line; None where both are whole logits or less and nothing is multiplied out."""
    ours = _learnt(student)
    if not isinstance(ours, Hidden) and not isinstance(theirs, Hidden):
        return None
    rows = ours.predictions.numel() if student.mask is None else int(student.mask.sum())
    classes = ours.classes if theirs is None or isinstance(theirs, TopK) else min(ours.classes, theirs.classes)
    states = ours.states if isinstance(ours, Hidden) else ours.logits
    plan = planned(rows, classes, budget=budget, way=way, device=states.device.type, size=max(4, states.dtype.itemsize))
    alone = "" if theirs is None or theirs.classes == ours.classes else f"; of {ours.classes:,} and {theirs.classes:,} entries the first {classes:,} count"
    kernel = ", in a Triton kernel" if plan.way != "vocabulary" and fused(states.new_empty(0, dtype=torch.float32), theirs) else ""
    return f"{rows:,} tokens by a vocabulary of {classes:,}, streamed: {plan}{kernel}{alone}"


def _learnt(student: Knowledge) -> Hidden | Dense:
    if isinstance(student.answer, TopK):
        raise MismatchError(f"the student's answer is {student.answer}, which nothing can be learnt from: give its logits, or its states and head")
    return student.answer


def _row(values: Tensor, chosen: Tensor | None, behind: int) -> Tensor:
    """The chosen predictions' values in a row, all of them where `chosen` is None; `behind` axes belong to each."""
    return values[chosen] if chosen is not None else values.flatten(0, -1 - behind) if values.ndim != 1 + behind else values


def _rows(answer: Any, chosen: Tensor | None) -> Any:
    """An answer's chosen predictions in a row."""
    if isinstance(answer, TopK):
        few = {"log_probs": _row(answer.log_probs, chosen, 1), "indices": _row(answer.indices, chosen, 1), "log_tail": _row(answer.log_tail, chosen, 0)}
        return replace(answer, **few)
    if isinstance(answer, Hidden):
        return replace(answer, states=_row(answer.states, chosen, 1))
    return replace(answer, logits=_row(answer.logits, chosen, 1))
