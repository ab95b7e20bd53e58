"""TinyBERT's transformer distillation: attention and hidden states of the student's layers match those of chosen layers of the teacher.

Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, arXiv:1909.10351, sec. 3.1.

Shapes: N examples, h heads, T tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered
from limbeck.objectives._precision import at_least_float32, place

from ._uniform import is_pattern, uniform

__all__ = ["Transformer", "transformer_loss"]


def transformer_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean of the squared differences over an example's elements: (1 / h) sum_a MSE(A_a, B_a) of attention, MSE(H W, G) of hidden states.

    Attention `[N, h, T, T]`, hidden states `[N, T, D]` or `[N, D]`, of one shape on both sides, give `[N]`. Where both exclude a place by one number, be it
    -inf, it counts as matched. Of tokens only those where `mask [N, T]` is not 0 count, if it is given, of attention only that between two of them; an
    example without any has 0.

    Raises:
        MismatchError: unequal shapes, or a mask that does not fit them.

    >>> import torch
    >>> transformer_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]))
    tensor([0.5000])
    """
    if student.shape != teacher.shape:
        raise MismatchError(f"the student gives {list(student.shape)} and the teacher {list(teacher.shape)}: both must be of one shape")
    ours, theirs = at_least_float32(student), at_least_float32(teacher.detach())
    each = (ours - theirs).masked_fill(ours == theirs, 0.0).square()
    if mask is None or student.ndim == 2:
        return each.flatten(1).mean(1)
    if mask.shape != (len(student), student.shape[-2]):
        raise MismatchError(
            f"the mask is {list(mask.shape)}, and the features are of {len(student)} examples of {student.shape[-2]} tokens: one number a token"
        )
    real = (mask != 0).to(each.dtype)
    counts = real[:, None, :, None] * real[:, None, None, :] if student.ndim == 4 else real[:, :, None]
    return torch.where(counts != 0, each, 0.0).flatten(1).sum(1) / counts.expand_as(each).flatten(1).sum(1).clamp(min=1)


class Transformer(Layered):
    """Match layers of a transformer: sum over pairs of layers of MSE(A_s, A_t) of attention and MSE(H_s W_h, H_t) of hidden states, one number per example.

    Jiao et al. 2020, arXiv:1909.10351, sec. 3.1, every layer with weight 1 as there. MSE is the mean over an example's elements, heads and tokens included.
    The paper matches scores of attention, before the softmax, as it found them to converge faster; here it is what the layers named give: scores where the
    path is the softmax's input (`blocks.*.attention.softmax:in`), probabilities, whose differences are smaller by far, where it is the softmax. W_h, learnt
    with the student and without a bias, is one matrix for all hidden states of the same two widths, as in the paper (the authors' code has a bias and uses
    the same map for the embeddings); between equal widths there is none, where the paper has one. Embeddings are hidden states here: name their layer.
    Masked scores are left out where both sides hold one value there; the authors' code sets all below -100 to zero.

    Which layers: one pair a line, or `*` for the number in a path on each side, which pairs layer m of M with layer m K / M of the teacher's K (rounded up),
    the paper's uniform strategy: {blocks.*: blocks.*} pairs 4 layers with the 3rd, 6th, 9th and 12th of 12.

    Args:
        hidden: student's layer -> teacher's layer, each giving hidden states [N, T, D] or [N, D].
        attention: student's layer -> teacher's layer, each giving attention [N, heads, T, T], of as many heads.
        mask: the batch's field `[N, T]` that is 0 at padding, such as attention; None counts every token.

    Raises:
        RecipeError: nothing to match.
        MismatchError: no teacher, attention of unlike shapes, or hidden states of different tokens.

    Example:
        {kind: attention.transformer, hidden: {sequence: sequence}, attention: {attention: attention}, weight: 1.0}
    """

    def __init__(self, *, hidden: dict[str, str] | None = None, attention: dict[str, str] | None = None, mask: str | None = None) -> None:
        super().__init__("auto")
        self.mask = mask
        if not (hidden or attention):
            raise RecipeError("Transformer has nothing to match: write hidden: {blocks.*: blocks.*} (student: teacher), attention:, or both")
        self._named = {"hidden": list((hidden or {}).items()), "attention": list((attention or {}).items())}
        self._hidden = len(self._named["hidden"])
        self._pairs = [both for pairs in self._named.values() for both in pairs if not any(map(is_pattern, both))]
        self.undecided = len(self._pairs) < sum(map(len, self._named.values()))
        self.projectors = nn.ModuleDict()

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, teacher, fields=frozenset() if self.mask is None else frozenset({self.mask}))

    def paired(self, student: Knowledge, teacher: Knowledge) -> list[tuple[str, str]]:
        hidden, attention = (
            [found for both in pairs for found in (uniform(*both, student.shapes, teacher.shapes, "Transformer") if any(map(is_pattern, both)) else [both])]
            for pairs in self._named.values()
        )
        self._hidden = len(hidden)
        return hidden + attention

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for index, ((mine, its), (ours, theirs)) in enumerate(zip(self.pairs, features, strict=True)):
            told = f"the student's {mine!r} gives {list(ours.shape)}, the teacher's {its!r} {list(theirs.shape)}"
            if index >= self._hidden:
                if ours.ndim != 4 or ours.shape != theirs.shape:
                    raise MismatchError(
                        f"{told}: attention must be [N, heads, T, T] with equal heads; where they differ use attention.minilm, whose relations want no "
                        "equal heads"
                    )
                continue
            if ours.ndim not in (2, 3) or ours.shape[:-1] != theirs.shape[:-1]:
                raise MismatchError(f"{told}: hidden states must both be [N, T, D] for the same T tokens, or both [N, D]")
            name = _widths(ours, theirs)
            if ours.shape[-1] != theirs.shape[-1] and name not in self.projectors:
                self.projectors[name] = nn.Linear(ours.shape[-1], theirs.shape[-1], bias=False, **place(ours))

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        mask = None if self.mask is None else batch[self.mask]
        losses = [
            transformer_loss(self._projected(ours, theirs) if index < self._hidden else ours, theirs, mask=mask)
            for index, (ours, theirs) in enumerate(self.matched(student, teacher))
        ]
        return torch.stack(losses).sum(0)

    def _projected(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The student's hidden states in the teacher's width."""
        if ours.shape[-1] == theirs.shape[-1]:
            return ours
        linear = self.projectors[_widths(ours, theirs)]
        assert isinstance(linear, nn.Linear)
        return linear(ours.to(linear.weight.dtype))


def _widths(ours: Tensor, theirs: Tensor) -> str:
    return f"{ours.shape[-1]}_to_{theirs.shape[-1]}"
