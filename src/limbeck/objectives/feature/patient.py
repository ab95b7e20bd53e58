"""Patient knowledge distillation: an encoder's hidden states, layer by layer, at length one.

Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, arXiv:1908.09355, eq. 7.
"""

from typing import ClassVar, Literal

from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.objectives._layered import Layers
from limbeck.objectives._options import check_choice

from ._maps import common, unit
from ._tokens import States, check_states, over_tokens

__all__ = ["Patient", "patient_loss"]


def patient_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return ||s/|s| - t/|t|||^2 for each example, the mean over its tokens; over those where `mask [N, T]` is not 0, if it is given.

    States `[N, D]` or `[N, T, D]` of one shape give `[N]`, from 0 to 4: twice the cosine loss. No gradient goes into the teacher.

    Raises:
        MismatchError: states of unequal shapes, or a mask that does not fit them.

    >>> import torch
    >>> patient_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    tensor([0.0800])
    """
    check_states(student, teacher)
    student, teacher = common(student, teacher)
    return over_tokens((unit(student) - unit(teacher)).square().sum(-1), mask)


class Patient(States):
    """Match the hidden states of several layers at length one: sum over layers of ||s/|s| - t/|t|||^2 at the first token, one number per example.

    Sun et al. 2019, arXiv:1908.09355, eq. 7, of the state of [CLS]. Name one pair per layer: every so many of the teacher's (PKD-skip) or its last ones
    (PKD-last), never the student's last layer, which reads the labels. The authors' code takes the mean over layers and the D elements of a state and weighs it
    10 to 1000: divide by layers x D to repeat those (5 layers of 768: 0.003 to 0.26). Where widths differ, which the paper has not, a linear map of the
    student's states is learnt.

    Args:
        layers: student's layer -> teacher's layer, such as {encoder.1: encoder.3, encoder.2: encoder.7}; auto takes all of an encoder's blocks, the last too.
        tokens: first reads the first token of a sequence, [CLS]; all has the mean over tokens.
        mask: with all, the batch's field `[N, T]` that is 0 at padding, such as attention_mask; None counts every token.

    Raises:
        RecipeError: another choice of tokens, or a mask without tokens to mask.
        MismatchError: no teacher, layers that give neither vectors nor sequences, or sequences of different lengths.

    Example:
        {kind: feature.patient, layers: {sequence: sequence, query: query}, tokens: all, weight: 0.1}
    """

    usual: ClassVar[float] = 0.1

    def __init__(self, *, layers: Layers = "auto", tokens: Literal["first", "all"] = "first", mask: str | None = None) -> None:
        super().__init__(layers, mask)
        check_choice(self, "tokens", tokens, ("first", "all"))
        if mask is not None and tokens == "first":
            raise RecipeError(f"Patient reads the first token alone, and the mask {mask!r} has nothing to leave out: add tokens: all, or leave the mask out")
        self.tokens: Literal["first", "all"] = tokens

    def read(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return (student[:, 0], teacher[:, 0]) if self.tokens == "first" and student.ndim == teacher.ndim == 3 else (student, teacher)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        return patient_loss(student, teacher, mask=mask)
