"""Directions of hidden states: DistilBERT's cosine embedding loss.

Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019, arXiv:1910.01108, sec. 3.
"""

from typing import ClassVar

from torch import Tensor

from limbeck.objectives._layered import Layers

from ._maps import common, unit
from ._tokens import States, check_states, over_tokens

__all__ = ["Cosine", "cosine_loss"]


def cosine_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return 1 - cos of student's and teacher's states for each example, the mean over its tokens; over those where `mask [N, T]` is not 0, if it is given.

    States `[N, D]` or `[N, T, D]` of one shape give `[N]`, from 0 to 2; a state of zeros has no direction and costs 1. No gradient goes into the teacher.

    Raises:
        MismatchError: states of unequal shapes, or a mask that does not fit them.

    >>> import torch
    >>> cosine_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    tensor([0.0400])
    """
    check_states(student, teacher)
    student, teacher = common(student, teacher)
    return over_tokens(1 - (unit(student) * unit(teacher)).sum(-1), mask)


class Cosine(States):
    """Match the directions of hidden states: 1 - cos(s, t), the mean over tokens, one number per example.

    Sanh et al. 2019, arXiv:1910.01108, on the last hidden states. Their code leaves padding out (`mask: attention_mask`), takes the mean over all tokens of the
    batch where this has one mean per example, and weighs it 1 beside 2 for the masked language model and 5 for the soft targets. Lengths are not matched, so
    that a student's state may be any multiple of the teacher's. Where widths differ, a linear map of the student's states is learnt.

    Args:
        layers: student's layer -> teacher's layer, such as {encoder: encoder}; auto takes the vector that the classifier reads.
        mask: the batch's field `[N, T]` that is 0 at padding, such as attention_mask; None counts every token.

    Raises:
        MismatchError: no teacher, layers that give neither vectors nor sequences, or sequences of different lengths.

    Example:
        {kind: feature.cosine, layers: {sequence: sequence}, weight: 1.0}
    """

    wish = "vector"
    usual: ClassVar[float] = 0.5

    def __init__(self, *, layers: Layers = "auto", mask: str | None = None) -> None:
        super().__init__(layers, mask)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        return cosine_loss(student, teacher, mask=mask)
