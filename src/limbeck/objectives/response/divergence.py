"""Any divergence between teacher and student, over vocabularies of any size.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", ICLR 2024, arXiv:2306.13649 (the generalised
Jensen-Shannon divergence); Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv:2306.08543 (the reverse KL); Ko et al.,
"DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, arXiv:2402.03898 (the skew ones); Shing et al., "TAID: Temporally Adaptive
Interpolated Distillation for Efficient Knowledge Transfer in Language Models", ICLR 2025, arXiv:2501.16937 (the target that moves).
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Dense, Knowledge, Needs, Response, TopK
from limbeck.core.objective import Objective
from limbeck.core.schedule import Decay, Number, at, check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._teacher import given

from ._answers import compared, told
from ._divergences import Divergence, named
from ._logits import check_fit, prepared
from ._streaming import Way, streamed
from ._topk import check_temperature

__all__ = ["DivergenceKD", "divergence_loss"]

Name = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"]


def divergence_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, divergence: Name | Divergence = "forward_kl", temperature: float = 1.0, toward: float | None = None
) -> Tensor:
    """Return T^2 D(p, q) of each prediction, p = softmax(teacher / T), q = softmax(student / T): logits `[..., C]` give `[...]`, in nats times T^2.

    With `toward` = t the target is softmax(((1 - t) student + t teacher) / T), the student's part held fixed.

    Raises:
        RecipeError: a divergence that is none, or a temperature of zero or less.
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> divergence_loss(torch.zeros(1, 2), torch.tensor([[0.0, float("-inf")]]), divergence="total_variation")
    tensor([0.5000])
    """
    check_number("temperature", temperature, positive=True)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    how = {"divergence": _divergence(divergence), "temperature": temperature, "toward": toward}
    ours, theirs = (one.reshape(-1, one.shape[-1]) for one in (student_logits, teacher_logits))
    return streamed(Dense(ours), Dense(theirs), **how).reshape(student_logits.shape[:-1])


class DivergenceKD(Objective):
    """Match the teacher's probabilities by any divergence: T^2 D(p, q), p and q the softmax of teacher's and student's logits / T, one per prediction.

    Where a model gives states and a head in the place of logits, these are never held whole: the loss is exact, computed part by part with its gradient.
    Of vocabularies of unequal size, what one side lacks is impossible on both. The forward KL is `response.kd`'s, T^2 included.

    Of a teacher whose k likeliest classes alone are known, all others are one class. A teacher whose tail has no mass was sampled (Anshumann et al. 2025,
    arXiv:2503.16870: each class by how often it was drawn) or renormalised: the forward KL's gradient is unbiased for the former, other divergences' are not
    and are refused unless `renormalize` says that this is meant.

    Args:
        divergence: forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl or total_variation; or a mapping with one of them as its kind and its `beta` (jsd:
            the teacher's share in the mixture) or `alpha` (the skew ones: the reference's share).
        temperature: T, above zero. May follow a schedule.
        hard: the share of the cross-entropy with the labels, at T = 1, computed in the same pass: (1 - hard) T^2 D + hard CE.
        toward: the teacher's share in a target interpolated from the student's own answer, from 0 to 1; a schedule as a rule: TAID. The teacher alone where
            it is left out.
        renormalize: leave out what a teacher's likeliest classes leave to all others, and make these sum to one. Biased: it teaches that the others are
            impossible.
        budget: bytes of buffers for a streamed loss; as many as make it fastest where it is left out.
        way: dense, tokens or vocabulary: force how it is computed.

    Raises:
        RecipeError: a divergence that is none, a temperature of zero or less, or shares that are none.
        MismatchError: no teacher, or answers that are no choice of one class.

    Example:
        {kind: response.divergence, divergence: {kind: jsd, beta: 0.5}, weight: 1.0}
    """

    def __init__(
        self,
        *,
        divergence: Name | Divergence = "forward_kl",
        temperature: Number = 1.0,
        hard: float = 0.0,
        toward: Number | None = None,
        renormalize: bool = False,
        budget: int | None = None,
        way: Way | None = None,
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        if not 0 <= hard < 1:
            raise RecipeError(f"hard is {hard:g}; it must be a share from 0 to below 1 (supervised is the cross-entropy alone)")
        if toward is not None:
            check_number("toward", toward, positive=False)
            ends = [toward] if isinstance(toward, (int, float)) else [toward.start] if isinstance(toward, Decay) else [toward.start, toward.end]
            if max(ends) > 1:
                raise RecipeError(f"toward is {max(ends):g}; it must be the teacher's share in the target, from 0 to 1")
        if budget is not None and budget < 1:
            raise RecipeError(f"budget is {budget}; it must be the bytes that buffers may take, such as 200000000")
        if way is not None and way not in get_args(Way):
            raise RecipeError(f"no way {way!r}{did_you_mean(way, get_args(Way))}: dense, tokens or vocabulary")
        self.divergence = _divergence(divergence)
        self.temperature, self.hard, self.toward = temperature, hard, toward
        self.renormalize, self.budget = renormalize, budget
        self.way: Way | None = way

    @property
    def needs(self) -> Needs:
        return Needs(labels=self.hard > 0)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        check_fit(self, student, teacher, link="softmax", topk=True)
        theirs = given(self, teacher).answer
        if self.hard and facts is not None and not facts.labelled:
            raise MismatchError("DivergenceKD needs labels for its hard share and the data carry none: leave out hard, or give labelled data")
        if isinstance(theirs, TopK):
            check_temperature(self, self.temperature, theirs)
            self._check_few(theirs)
        elif self.renormalize:
            raise MismatchError("DivergenceKD renormalizes a teacher's likeliest classes, and this one's answer is whole: leave out renormalize")
        line = told(student, theirs, budget=self.budget, way=self.way)
        self.said = () if line is None else (f"DivergenceKD: {line}",)

    def _check_few(self, theirs: TopK) -> None:
        if self.toward is not None:
            raise MismatchError(f"DivergenceKD's target is interpolated from whole answers, and the teacher's is {theirs}: leave out toward")
        if theirs.indices.shape[-1] == theirs.classes or self.renormalize or self.divergence.kind == "forward_kl" or not theirs.log_tail.numel():
            return
        if bool((theirs.log_tail == float("-inf")).all()):
            raise MismatchError(
                f"the teacher's answer is {theirs}, which leave the others nothing: sampled, or renormalised; only the forward KL's gradient is unbiased "
                f"then, and {self.divergence.kind} was asked for: take divergence: forward_kl, or renormalize: true, which is biased"
            )

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        toward = None if self.toward is None else min(1.0, at(self.toward, self.clock))  # a decay may grow
        how = {"divergence": self.divergence, "temperature": self.now(self.temperature), "hard": self.hard, "toward": toward}
        labels = batch["label"] if self.hard else None
        theirs = given(self, teacher).answer
        return compared(student, _renormalized(theirs) if self.renormalize else theirs, labels, budget=self.budget, way=self.way, **how)


def _divergence(told: "Name | Divergence | dict[str, Any]") -> Divergence:
    """A divergence by its name, or as a mapping; what is wrong with it in one line."""
    try:
        return named(told)
    except ValidationError as error:
        kind = told.get("kind") if isinstance(told, dict) else told
        if kind not in get_args(Name):
            raise RecipeError(f"no divergence {kind!r}{did_you_mean(str(kind), get_args(Name))}: {', '.join(get_args(Name))}") from None
        first = error.errors()[0]
        raise RecipeError(f"divergence {kind}: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}") from None


def _renormalized(theirs: Response) -> Response:
    """A teacher's likeliest classes made to sum to one."""
    assert isinstance(theirs, TopK)
    nothing = torch.full_like(theirs.log_tail, float("-inf"))
    return replace(theirs, log_probs=theirs.log_probs - theirs.log_probs.logsumexp(-1, keepdim=True), log_tail=nothing)
