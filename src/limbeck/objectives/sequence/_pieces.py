"""Two answers read row by row, some rows at a time: of states and a head, logits are held for so many rows alone.

Shapes: N texts, T predictions of each; n rows that are read, V classes.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Response
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

__all__ = ["as_texts", "check_texts", "in_pieces"]

_LOGITS = 1 << 24
"""Logits of a side that are held at once."""


def check_texts(objective: nn.Module, student: Knowledge, teacher: Knowledge | None) -> None:
    """Refuse answers that are no choices of one class of which all are known, or texts that are not as many.

    Raises:
        MismatchError: in one line.
    """
    for side, said in (("student", student), ("teacher", given(objective, teacher))):
        answer = said.answer
        if not isinstance(answer, (Dense, Hidden)):
            raise MismatchError(f"{type(objective).__name__} reads whole answers, and the {side}'s is {answer}: take a teacher that gives them, own_tokens")
        if answer.link != "softmax":
            raise MismatchError(f"{type(objective).__name__} compares probabilities over tokens (softmax), and the {side}'s answers are {answer.link}")
    _same_texts(student, given(objective, teacher))


def _same_texts(student: Knowledge, teacher: Knowledge) -> None:
    ours, theirs = student.answer.predictions, teacher.answer.predictions
    if ours[:1] != theirs[:1] or len(ours) != len(theirs) or len(ours) > 2:
        raise MismatchError(
            f"the student answers {list(ours)} predictions and the teacher {list(theirs)}: both must read the same texts, [N, T] and [N, U]; take transfer: "
            "{kind: retokenized}"
        )


def as_texts(student: Knowledge, teacher: Knowledge) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the rows of both sides, `[N T, ...]` and `[N U, ...]`, states or logits, and which count, `[N, T]` and `[N, U]`.

    Predictions `[N]` are texts of one token.

    Raises:
        MismatchError: texts that are not as many.
    """
    _same_texts(student, teacher)
    made = []
    for said in (student, teacher):
        rows = _rows(said.answer)
        shape = said.answer.predictions if len(said.answer.predictions) == 2 else (*said.answer.predictions, 1)
        counts = torch.ones(shape, dtype=torch.bool, device=rows.device) if said.mask is None else said.mask.view(shape)
        made.append((rows.reshape(-1, rows.shape[-1]), counts))
    return made[0][0], made[1][0], made[0][1], made[1][1]


def in_pieces(
    read: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]], student: Response, teacher: Response, ours: Tensor, theirs: Tensor, more: Tensor
) -> tuple[Tensor, ...]:
    """Return `read(z, z', more)` of rows of both answers, `[n]` each: logits `[n, V]` and `[n, V']`, the teacher's without a gradient, and a value of each row.

    Logits beyond 2^24 are computed again going back.
    """
    assert isinstance(student, (Dense, Hidden)) and isinstance(teacher, (Dense, Hidden))

    def piece(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            z = at_least_float32(_logits(teacher, b)).detach()
        return read(at_least_float32(_logits(student, a)), z, c)

    size = max(1, _LOGITS // max(student.classes, teacher.classes))
    if len(more) <= size:
        return piece(ours, theirs, more)
    parts = [
        checkpoint(piece, a, b, c, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else piece(a, b, c)
        for a, b, c in zip(ours.split(size), theirs.split(size), more.split(size), strict=True)
    ]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _rows(answer: Response) -> Tensor:
    if isinstance(answer, Hidden):
        return answer.states
    if isinstance(answer, Dense):
        return answer.logits
    raise MismatchError(f"whole answers are compared, and one is {answer}: take a teacher that gives them, own_tokens")


def _logits(answer: Dense | Hidden, rows: Tensor) -> Tensor:
    return replace(answer, states=rows).logits if isinstance(answer, Hidden) else rows
