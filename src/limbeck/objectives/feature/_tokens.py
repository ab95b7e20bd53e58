"""Hidden states: vectors `[N, D]`, or sequences of T of them, `[N, T, D]`."""

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError

__all__ = ["check_states", "over_tokens"]


def check_states(student: Tensor, teacher: Tensor, names: tuple[str, str] | None = None) -> None:
    """Refuse features that are no hidden states of the same tokens, and with no `names` (of layers, before they are projected) also those of unequal widths."""
    ours, theirs = ("'s states", "'s states") if names is None else (f"'s {names[0]!r}", f"'s {names[1]!r}")
    told = f"the student{ours} are {list(student.shape)} and the teacher{theirs} {list(teacher.shape)}"
    if student.ndim not in (2, 3) or student.ndim != teacher.ndim:
        raise MismatchError(f"{told}: name two layers that both give vectors [N, D] or sequences [N, T, D]")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise MismatchError(f"{told}: states are matched one by one; name layers that see the same tokens of the same examples, in sequences of one length")
    if names is None and student.shape != teacher.shape:
        raise MismatchError(f"{told}: project the one to the other's width first")


def over_tokens(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of `losses [N, T]` over tokens, `[N]`, those alone where `mask [N, T]` is not 0; an example without any has 0. `[N]` stays as it is.

    Raises:
        MismatchError: a mask of another shape.
    """
    if mask is None:
        return losses if losses.ndim == 1 else losses.mean(-1)
    if mask.shape != losses.shape:
        raise MismatchError(f"the mask is {list(mask.shape)} and there is a state for each of {list(losses.shape)}: give one number per token, [N, T]")
    real = mask != 0
    return torch.where(real, losses, 0.0).sum(-1) / real.sum(-1).clamp(min=1)
