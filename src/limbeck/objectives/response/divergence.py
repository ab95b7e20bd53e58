"""Any divergence between teacher and student, over vocabularies of any size.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", ICLR 2024, arXiv:2306.13649 (the generalised
Jensen-Shannon divergence); Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv:2306.08543 (the reverse KL); Ko et al.,
"DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, arXiv:2402.03898 (the skew ones); Shing et al., "TAID: Temporally Adaptive
Interpolated Distillation for Efficient Knowledge Transfer in Language Models", ICLR 2025, arXiv:2501.16937 (the target that moves).
"""

from typing import Literal

from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.schedule import Number, at, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._answers import compared
from ._divergences import Divergence, named
from ._response import Responding
from ._streaming import streamed

__all__ = ["DivergenceKD", "divergence_loss"]

Name = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"]


def divergence_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, divergence: Name | Divergence = "forward_kl", temperature: float = 1.0, toward: float | None = None
) -> Tensor:
    """Return T^2 D(p, q) of each prediction, p = softmax(teacher / T), q = softmax(student / T): logits `[..., C]` give `[...]`, in nats times T^2.

    With `toward` = t the target is softmax(((1 - t) student + t teacher) / T), the student's part held fixed.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: logits that do not fit.

    >>> import torch
    >>> divergence_loss(torch.zeros(1, 2), torch.tensor([[0.0, float("-inf")]]), divergence="total_variation")
    tensor([0.5000])
    """
    check_number("temperature", temperature, positive=True)
    how = {"divergence": named(divergence), "temperature": temperature, "toward": toward}
    ours = student_logits.reshape(-1, student_logits.shape[-1])
    theirs = teacher_logits.reshape(-1, teacher_logits.shape[-1])
    return streamed(Dense(ours), Dense(theirs), **how).reshape(student_logits.shape[:-1])


class DivergenceKD(Responding):
    """Match the teacher's probabilities by any divergence: T^2 D(p, q), p and q the softmax of teacher's and student's logits / T, one per prediction.

    Where a model gives states and a head in the place of logits, these are never held whole: the loss is exact, computed part by part with its gradient.
    Of vocabularies of unequal size, what one side lacks is impossible on both. The forward KL is `response.kd`'s, T^2 included.

    Args:
        divergence: forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl or total_variation; or a mapping with one of them as its kind and its `beta` (jsd:
            the teacher's share in the mixture) or `alpha` (the skew ones: the reference's share).
        temperature: T, above zero. May follow a schedule.
        hard: the share of the cross-entropy with the labels, at T = 1, computed in the same pass: (1 - hard) T^2 D + hard CE.
        toward: the teacher's share in a target interpolated from the student's own answer, from 0 to 1; a schedule as a rule: TAID. The teacher alone where
            it is left out.
        budget: bytes of buffers for a streamed loss; as many as make it fastest where it is left out.
        way: dense, tokens or vocabulary: force how it is computed.

    Raises:
        RecipeError: a temperature of zero or less, or shares that are none.
        MismatchError: no teacher, or answers that are no choice of one class.

    Example:
        {kind: response.divergence, divergence: {kind: jsd, beta: 0.5}, weight: 1.0}
    """

    topk = True

    def __init__(
        self,
        *,
        divergence: Name | Divergence = "forward_kl",
        temperature: Number = 1.0,
        hard: float = 0.0,
        toward: Number | None = None,
        budget: int | None = None,
        way: Literal["dense", "tokens", "vocabulary"] | None = None,
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        if not 0 <= hard < 1:
            raise RecipeError(f"hard is {hard:g}; it must be a share from 0 to below 1 (supervised is the cross-entropy alone)")
        if toward is not None:
            check_number("toward", toward, positive=False)
        self.divergence = named(divergence)
        self.temperature, self.hard, self.toward = temperature, hard, toward
        self.budget, self.way = budget, way
        self.labelled = hard > 0

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        toward = None if self.toward is None else min(1.0, at(self.toward, self.clock))
        how = {"divergence": self.divergence, "temperature": self.now(self.temperature), "hard": self.hard, "toward": toward}
        labels = batch["label"] if self.hard else None
        return compared(student, given(self, teacher).answer, labels, budget=self.budget, way=self.way, **how)
