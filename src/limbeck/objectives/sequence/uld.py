"""Universal logit distillation: probabilities by rank, so that no token of the one side need be known to the other.

Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", TMLR 2025, arXiv:2402.12030.

Shapes: N texts, T tokens of the student's, U of the teacher's, V and V' entries of their vocabularies, n rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Objective
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._teacher import given

from ._pieces import as_texts, check_texts, in_pieces

__all__ = ["ULD", "uld_loss"]


def uld_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return sum_i |p_(i) - q_(i)| of rows of logits `[n, V]` and `[n, V']`: `[n]`, from 0 to 2; p_(i) is the i-th largest, 0 behind the smaller vocabulary.

    It is the Wasserstein distance of the two where each token is as far from every other as from itself in the other vocabulary (their sec. 3.2).

    >>> uld_loss(torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, float("-inf"), 9.0]])).tolist()
    [0.0]
    """
    q, p = (z.div(temperature).softmax(-1).sort(-1, descending=True).values for z in (student_logits, teacher_logits.detach()))
    width = max(q.shape[-1], p.shape[-1])
    return (F.pad(q, (0, width - q.shape[-1])) - F.pad(p, (0, width - p.shape[-1]))).abs().sum(-1)


class ULD(Objective):
    """Match the teacher's probabilities rank by rank, whatever its tokens are: `sum_t sum_i |p_t(i) - q_t(i)|`, sorted, the smaller vocabulary padded by zeros.

    Boizard et al. 2024, arXiv:2402.12030, eq. 4 and 5, beside a cross-entropy of weight one: `[{kind: sequence.uld, weight: 1.5}, {kind: supervised}]`, 1.5
    being their lambda. The t-th token that counts of a text is compared with the teacher's t-th, up to the shorter of the two, as in the paper: no more than
    the shape of the distributions is learnt, and of long texts other places are compared. `sequence.aligned` compares the same bytes.

    Args:
        temperature: both answers are softmax(logits / temperature). May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: no teacher, answers that are not whole, or other texts.

    Example:
        {kind: sequence.uld, weight: 1.5}
    """

    usual = 1.5

    def __init__(self, *, temperature: Number = 1.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        self.temperature = temperature

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        check_texts(self, student, teacher)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        theirs = given(self, teacher)
        ours, other, counts, they = as_texts(student, theirs)
        count, width, length = len(counts), counts.shape[1], min(counts.shape[1], they.shape[1])
        if student.mask is None and theirs.mask is None:
            at = torch.arange(count * length, device=ours.device)
            first, second = at // length * width + at % length, at // length * they.shape[1] + at % length
        else:  # the places that count, in order
            places = [(~one).long().sort(dim=1, stable=True).indices[:, :length] for one in (counts, they)]
            both = torch.arange(length, device=ours.device) < torch.minimum(counts.sum(1), they.sum(1))[:, None]
            rows = torch.arange(count, device=ours.device)[:, None]
            first, second = ((rows * one.shape[1] + place)[both] for one, place in zip((counts, they), places, strict=True))
        temperature = self.now(self.temperature)
        (each,) = in_pieces(
            lambda z, other_z, _: (uld_loss(z, other_z, temperature=temperature),), student.answer, theirs.answer, ours[first], other[second], first
        )
        return each.new_zeros(count * width).index_put((first,), each).view(student.answer.predictions)
