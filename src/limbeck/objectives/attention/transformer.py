"""TinyBERT's transformer distillation: attention and hidden states of the student's layers match those of chosen layers of the teacher.

Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, arXiv:1909.10351, sec. 3.1.

Shapes: N examples, h heads, T tokens, D width.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

from ._uniform import is_pattern, uniform

__all__ = ["Transformer", "transformer_loss"]

_Pair = tuple[str, str]


def transformer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of the squared differences over an example's elements: (1 / h) sum_a MSE(A_a, B_a) of attention, MSE(H W, G) of hidden states.

    Attention `[N, h, T, T]`, hidden states `[N, T, D]` or `[N, D]`, of one shape on both sides, give `[N]`. Where both exclude a place by one number, be it
    -inf, it counts as matched.

    Raises:
        MismatchError: unequal shapes.

    >>> import torch
    >>> transformer_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]))
    tensor([0.5000])
    """
    if student.shape != teacher.shape:
        raise MismatchError(f"the student gives {list(student.shape)} and the teacher {list(teacher.shape)}: both must be of one shape")
    ours, theirs = at_least_float32(student), at_least_float32(teacher.detach())
    return (ours - theirs).masked_fill(ours == theirs, 0.0).square().flatten(1).mean(1)


class Transformer(Objective):
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

    Raises:
        RecipeError: nothing to match.
        MismatchError: no teacher, attention of unlike shapes, or hidden states of different tokens.

    Example:
        {kind: attention.transformer, hidden: {sequence: sequence}, attention: {attention: attention}, weight: 1.0}
    """

    def __init__(self, *, hidden: dict[str, str] | None = None, attention: dict[str, str] | None = None) -> None:
        super().__init__()
        if not (hidden or attention):
            raise RecipeError("Transformer has nothing to match: write hidden: {blocks.*: blocks.*} (student: teacher), attention:, or both")
        self._named = {"hidden": list((hidden or {}).items()), "attention": list((attention or {}).items())}
        self._pairs: dict[str, list[_Pair]] = {kind: [pair for pair in pairs if not any(map(is_pattern, pair))] for kind, pairs in self._named.items()}
        self.undecided = any(is_pattern(path) for pairs in self._named.values() for pair in pairs for path in pair)
        self.projectors = nn.ModuleDict()
        self._shapes: list[tuple[torch.Size, torch.Size]] | None = None

    def choose(self, student: Knowledge, teacher: Knowledge | None) -> None:
        if not self.undecided:
            return
        ours, theirs, chosen = student.shapes, given(self, teacher).shapes, list[_Pair]()
        for kind, pairs in self._named.items():
            self._pairs[kind] = []
            for pair in pairs:
                found = uniform(*pair, ours, theirs, "Transformer") if any(map(is_pattern, pair)) else [pair]
                self._pairs[kind] += found
                chosen += found if found != [pair] else []
        self.said = tuple(f"Transformer pairs {one} with {other}" for one, other in chosen)
        self.undecided = False

    @property
    def needs(self) -> Needs:
        pairs = [pair for kind in self._pairs.values() for pair in kind]
        none = frozenset[str]()
        return Needs(student=Reads(none, frozenset(ours for ours, _ in pairs)), teacher=Reads(none, frozenset(theirs for _, theirs in pairs)))

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        hidden, attention = (list(self._read(kind, student, teacher)) for kind in ("hidden", "attention"))
        shapes = [(ours.shape[1:], theirs.shape[1:]) for ours, theirs in hidden + attention]
        if self._shapes not in (None, shapes):
            raise MismatchError(f"Transformer was bound to other features than {[[list(one), list(other)] for one, other in shapes]}: make a new one")
        for (mine, its), (ours, theirs) in zip(self._pairs["attention"], attention, strict=True):
            if ours.ndim != 4 or ours.shape != theirs.shape:
                raise MismatchError(
                    f"the student's {mine!r} gives {list(ours.shape)}, the teacher's {its!r} {list(theirs.shape)}: attention must be [N, heads, T, T] with "
                    "equal heads; where they differ use attention.minilm, whose relations want no equal heads"
                )
        if self._shapes is None:
            self._fit(hidden)
            self._shapes = shapes

    def _fit(self, hidden: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (mine, its), (ours, theirs) in zip(self._pairs["hidden"], hidden, strict=True):
            if ours.ndim not in (2, 3) or ours.shape[:-1] != theirs.shape[:-1]:
                raise MismatchError(
                    f"the student's {mine!r} gives {list(ours.shape)}, the teacher's {its!r} {list(theirs.shape)}: "
                    "hidden states must both be [N, T, D] for the same T tokens, or both [N, D]"
                )
        for ours, theirs in hidden:
            name = _widths(ours, theirs)
            if ours.shape[-1] != theirs.shape[-1] and name not in self.projectors:
                dtype = torch.promote_types(ours.dtype, torch.float32)
                self.projectors[name] = nn.Linear(ours.shape[-1], theirs.shape[-1], bias=False, device=ours.device, dtype=dtype)

    def _read(self, kind: str, student: Knowledge, teacher: Knowledge | None) -> Iterator[tuple[Tensor, Tensor]]:
        said = given(self, teacher)
        for ours, theirs in self._pairs[kind]:
            one, other = student.feature(ours), said.feature(theirs).detach()
            if len(one) != len(other):
                raise MismatchError(f"Transformer: the student's {ours!r} has {len(one)} examples and the teacher's {theirs!r} {len(other)}")
            yield one, other

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [transformer_loss(ours, theirs) for ours, theirs in self._read("attention", student, teacher)]
        losses += [transformer_loss(self._projected(ours, theirs), theirs) for ours, theirs in self._read("hidden", student, teacher)]
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
