"""MiniLM: tokens of the student attend, and relate to one another, as the teacher's do.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, arXiv:2002.10957, sec. 3;
Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers", Findings of ACL 2021, arXiv:2012.15828,
sec. 3.

Shapes: N examples, T tokens, D width, h heads.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered
from limbeck.objectives._precision import at_least_float32

__all__ = ["MiniLM", "minilm_attention_loss", "minilm_loss"]


def minilm_loss(student: Tensor, teacher: Tensor, *, heads: int = 12, mask: Tensor | None = None) -> Tensor:
    """Return the mean over heads and tokens of KL(R_t || R_s) for each example, R = softmax(V_a V_a^T / sqrt(d)), V_a head a of d = D / heads of the width.

    Vectors `[N, T, D]`, or `[N, h, T, d]` whose heads are put together again first, give `[N]`, in nats; widths may differ, T may not. Only tokens where
    `mask [N, T]` is not 0 are related, and with one another, if it is given; an example without any has 0.

    Raises:
        MismatchError: other shapes, tokens of different number, a width that `heads` does not divide, or a mask that does not fit.

    >>> import torch
    >>> minilm_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 4), heads=2)
    tensor([0.])
    """
    _check_vectors(student, teacher, heads)
    real = _real(mask, student)
    log_q, log_p = _relations(at_least_float32(student), heads, real), _relations(at_least_float32(teacher.detach()), heads, real)
    return _over_tokens((log_p.exp() * (log_p - log_q)).sum(-1), real)


def minilm_attention_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean over heads and tokens of KL(A_t || A_s) for each example, A the probabilities of attention.

    Probabilities `[N, h, T, T]` give `[N]`, in nats. A student's probability counts as no less than the smallest normal number of its precision. Only the
    attention of tokens where `mask [N, T]` is not 0 counts, if it is given; an example without any has 0.

    Raises:
        MismatchError: attention of unequal shapes, or a mask that does not fit.

    >>> import torch
    >>> minilm_attention_loss(torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[1.0, 0.0]]]]))
    tensor([0.6931])
    """
    _check_attention(student, teacher)
    log_q = at_least_float32(student).clamp(min=torch.finfo(student.dtype).tiny).log()
    p = at_least_float32(teacher.detach())
    return _over_tokens((torch.special.xlogy(p, p) - p * log_q).sum(-1), _real(mask, student))


def _real(mask: Tensor | None, features: Tensor) -> Tensor | None:
    """Which tokens count, `[N, T]`."""
    if mask is not None and mask.shape != (len(features), features.shape[-2]):
        raise MismatchError(f"the mask is {list(mask.shape)}, and there are {len(features)} examples of {features.shape[-2]} tokens: give one number a token")
    return None if mask is None else mask != 0


def _over_tokens(losses: Tensor, real: Tensor | None) -> Tensor:
    """The mean of `[N, h, T]` over heads and the tokens that count."""
    if real is None:
        return losses.mean((1, 2))
    return torch.where(real[:, None], losses, 0.0).sum((1, 2)) / (real.sum(1) * losses.shape[1]).clamp(min=1)


def _relations(vectors: Tensor, heads: int, real: Tensor | None) -> Tensor:
    """How tokens relate, the logarithms of the softmax: `[N, heads, T, T]`; a token that does not count is related to none, by the least finite number."""
    whole = vectors.transpose(1, 2).flatten(2) if vectors.ndim == 4 else vectors
    split = whole.unflatten(-1, (heads, -1)).transpose(1, 2) / (whole.shape[-1] // heads) ** 0.25  # on both factors: less to overflow
    scores = split @ split.transpose(-1, -2)
    return F.log_softmax(scores if real is None else scores.masked_fill(~real[:, None, None, :], torch.finfo(scores.dtype).min), -1)


def _check_vectors(student: Tensor, teacher: Tensor, heads: int) -> None:
    told = f"the student's vectors are {list(student.shape)} and the teacher's {list(teacher.shape)}"
    if {student.ndim, teacher.ndim} - {3, 4} or (len(student), student.shape[-2]) != (len(teacher), teacher.shape[-2]):
        raise MismatchError(f"{told}: name two layers that both give [N, T, D], or [N, heads, T, d], for the same N examples of T tokens")
    widths = [each.shape[-1] * (each.shape[1] if each.ndim == 4 else 1) for each in (student, teacher)]
    if any(width % heads for width in widths):
        both = math.gcd(*widths)
        fit = ", ".join(str(count) for count in range(1, both + 1) if both % count == 0)
        raise MismatchError(f"{told}: widths {widths[0]} and {widths[1]} do not split into {heads} heads each; heads may be {fit}")


def _check_attention(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 4:
        raise MismatchError(
            f"the student's attention is {list(student.shape)} and the teacher's {list(teacher.shape)}: both must be [N, heads, T, T] with equal heads; "
            "where heads differ match relations instead, relations: {query: query, key: key, value: value}"
        )


class MiniLM(Layered):
    """Match self-attention: the sum, over the vectors named, of KL(R_t || R_s), R = softmax(V V^T / sqrt(d)) in each head, and KL(A_t || A_s) of attention.

    One number per example, means over heads and tokens. MiniLMv2 (Wang et al. 2021, arXiv:2012.15828) relates queries, keys and values, heads put together
    and split anew into any number of relation heads (48 for its base-sized teachers, 64 for large ones), so that widths and attention heads may differ:
    `relations: {query: query, key: key, value: value}`. MiniLM (Wang et al. 2020, arXiv:2002.10957) matches the probabilities of attention, which wants equal
    heads, and value relations in as many: `relations: {value: value}`, `attention: {softmax: softmax}`, `heads` those of the models. Each term has weight 1
    in both. Both read the student's last layer and one of the teacher: its last, or in v2 an upper middle one of a large teacher (the 21st of BERT's 24).
    Padding is told apart by `mask`. Nothing is learnt.

    Args:
        relations: student's layer -> teacher's layer, each giving queries, keys or values [N, T, D] or [N, heads, T, d]; each is related with itself.
        attention: student's layer -> teacher's layer, each giving probabilities of attention [N, heads, T, T]; none by default, as in v2.
        heads: relation heads, A_r, which must divide both widths.
        mask: the batch's field `[N, T]` that is 0 at padding, such as attention; None counts every token.

    Raises:
        RecipeError: nothing to match, one layer named twice, or no head.
        MismatchError: no teacher, tokens of different number, widths that do not split, heads of attention that differ, or scores in place of probabilities.

    Example:
        {kind: attention.minilm, relations: {query: query, key: key, value: value}, heads: 4, weight: 1.0}
    """

    def __init__(self, *, relations: dict[str, str], attention: dict[str, str] | None = None, heads: int = 12, mask: str | None = None) -> None:
        attention = attention or {}
        if not (relations or attention):
            raise RecipeError("MiniLM has nothing to match: write relations: {query: query, key: key, value: value} (student: teacher)")
        twice = sorted(relations.keys() & attention.keys())
        if twice:
            raise RecipeError(f"MiniLM has {twice[0]!r} of the student in both relations and attention: name the layer that gives each")
        if heads < 1:
            raise RecipeError(f"heads is {heads}; it must be a whole number of at least 1")
        super().__init__({**relations, **attention})
        self.heads, self.mask = heads, mask
        self.related = len(relations)

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, teacher, fields=frozenset() if self.mask is None else frozenset({self.mask}))

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for index, (ours, theirs) in enumerate(features):
            if index < self.related:
                _check_vectors(ours, theirs, self.heads)
                continue
            _check_attention(ours, theirs)
            for side, path, given in zip(("student", "teacher"), self.pairs[index], (ours, theirs), strict=True):
                if given.min() < 0:
                    raise MismatchError(f"the {side}'s {path!r} gives negative numbers, scores and not probabilities: name its softmax")

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        mask = None if self.mask is None else batch[self.mask]
        losses = [
            minilm_loss(ours, theirs, heads=self.heads, mask=mask) if index < self.related else minilm_attention_loss(ours, theirs, mask=mask)
            for index, (ours, theirs) in enumerate(self.matched(student, teacher))
        ]
        return torch.stack(losses).sum(0)
