"""Two tokenizers aligned by the bytes that their tokens spell.

Tokens are compared one by one where both tokenizers divide a text alike, and by the probability of what they spell together where they do not: alignment by
likelihood of chunks is Minixhofer et al., "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching", 2025, arXiv:2503.20083.

Shapes: N texts, T tokens of the student's, U of the teacher's, V and V' entries of their vocabularies, n rows.
"""

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge, Needs
from limbeck.core.objective import Objective
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._teacher import given
from limbeck.objectives.response._divergences import Divergence
from limbeck.objectives.response._streaming import streamed
from limbeck.objectives.response.divergence import DivergenceKD, Name

from ._chunks import chunked
from ._pieces import as_texts, check_texts, in_pieces

__all__ = ["Aligned", "shared"]

_NEVER = float("-inf")


def shared(student_log: Tensor, teacher_log: Tensor, twins: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities `[n, V]` and `[n, V']` over the entries that both sides have, `[n, V + 1]` each, in the student's order, all others as one.

    `twins [V']`: the student's entry that is the same as the teacher's, -1 for none. An entry of one side alone is impossible on both. Where one side has
    none that the other lacks, the others are left out on both, and what is shared is to be made to sum to one.
    """
    back = torch.full_like(student_log[:1], -1, dtype=torch.int64)[0]
    back = torch.cat([back, back[:1]]).scatter(0, torch.where(twins < 0, len(back), twins), torch.arange(len(twins), device=twins.device))[:-1]
    both, alone = back >= 0, twins < 0
    lacks = both.all() | ~alone.any()
    mapped = torch.where(both, teacher_log.index_select(1, back.clamp(min=0)), _NEVER)
    made = []
    for log, kept, other in ((student_log, torch.where(both, student_log, _NEVER), ~both), (teacher_log, mapped, alone)):
        rest = torch.where(lacks, torch.zeros_like(log), torch.where(other, log, _NEVER)).logsumexp(-1, keepdim=True)
        made.append(torch.cat([kept, torch.where(lacks, torch.full_like(rest, _NEVER), rest)], -1))
    return made[0], made[1]


def _coin(log: Tensor) -> Tensor:
    """The log-probabilities of what has probability exp(log), and of all else: `[...]` to `[..., 2]`."""
    log = log.clamp(max=-1e-7)
    return torch.stack([log, torch.log(-torch.expm1(log))], -1)


class Aligned(Objective):
    """Match the teacher's probabilities where both tokenizers end a token at the same byte.

    Bytes are cut into chunks wherever a token starts or ends on both sides. A chunk of one token on both sides costs T^2 D(p, q) over the entries of the two
    vocabularies that spell the same, all others being one class: between equal tokenizers every chunk is one, and the loss is `response.divergence`'s. Of a
    longer chunk its probability, the product over its tokens, is compared with that of anything else: T^2 D over two classes. That is what each model says of
    its own division of these bytes alone, of which there are others. The loss stands at the student's last token of its chunk; chunks whose labels do not all
    count cost nothing. Minixhofer et al. 2025, arXiv:2503.20083, compare chunks likewise.

    Where one vocabulary is part of the other (bytes and a BPE over bytes) all others are left out, and what is shared is made to sum to one.

    Args:
        divergence: as response.divergence has it: forward_kl, reverse_kl, jsd, ..., or a mapping with its kind and options.
        temperature: T, of every token's softmax. May follow a schedule.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: no teacher, answers that are not whole, other texts, or batches that do not say which bytes tokens spell.

    Example:
        {kind: sequence.aligned, weight: 1.0}
    """

    def __init__(self, *, divergence: Name | Divergence = "forward_kl", temperature: Number = 1.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        self.divergence = DivergenceKD(divergence=divergence).divergence
        self.temperature = temperature

    @property
    def needs(self) -> Needs:
        return Needs(labels=True, fields=frozenset({"starts", "ends", "teacher_label", "teacher_starts", "teacher_ends", "twins"}))

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        check_texts(self, student, teacher)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        theirs, temperature = given(self, teacher), self.now(self.temperature)
        ours, other, counts, they = as_texts(student, theirs)
        label, starts, ends = (_laid(batch, name, counts) for name in ("label", "starts", "ends"))
        their_label, their_starts, their_ends = (_laid(batch, f"teacher_{name}", they) for name in ("label", "starts", "ends"))
        twins = batch["twins"].flatten(0, -2)[0] if len(batch["twins"]) else batch["twins"].new_zeros(batch["twins"].shape[-1])
        _check(twins, student, theirs)
        chunks = chunked(starts, ends, their_starts, their_ends)
        counts = counts & (label >= 0)
        at = _places(counts, student.mask is None)
        with torch.no_grad():
            where = _places(they & (their_label >= 0), theirs.mask is None)
            log_p = self._chosen(theirs, other[where], their_label.flatten()[where], temperature, their_label.shape, where)
        partner = (torch.arange(len(counts), device=at.device)[:, None] * they.shape[1] + chunks.partner).flatten()[at]

        def read(z: Tensor, their_z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            log_q, log = (one.div(temperature).log_softmax(-1) for one in (z, their_z[:, : len(twins)]))
            mine, yours = shared(log_q, log, twins)
            return log_q.gather(1, y[:, None])[:, 0], streamed(Dense(mine), Dense(yours), divergence=self.divergence)

        log_q, whole = in_pieces(read, student.answer, theirs.answer, ours[at], other[partner], label.flatten()[at].clamp(min=0))
        log_q, whole = (each.new_zeros(label.numel()).index_put((at,), each).view(label.shape) for each in (log_q, whole))
        sums = [
            one.new_zeros(label.shape).scatter_add(1, of.clamp(min=0), torch.where(of >= 0, one, torch.zeros_like(one)))
            for one, of in ((log_q, chunks.of), (log_p.to(log_q.dtype), chunks.theirs))
        ]
        missed = counts.new_zeros(label.shape).long().scatter_add(1, chunks.of.clamp(min=0), ((chunks.of >= 0) & ~counts).long())
        sound = chunks.closes & (missed.gather(1, chunks.of.clamp(min=0)) == 0)
        together = (one.gather(1, chunks.of.clamp(min=0)) for one in sums)
        mine, yours = (_coin(torch.where(sound & ~chunks.single, one, torch.full_like(one, -1.0))) for one in together)
        several = streamed(Dense(mine.flatten(0, 1)), Dense(yours.flatten(0, 1)), divergence=self.divergence).view(label.shape)
        each = torch.where(chunks.single, whole, several) * temperature**2
        return torch.where(sound, each, torch.zeros_like(each)).view(student.answer.predictions)

    @staticmethod
    def _chosen(teacher: Knowledge, rows: Tensor, labels: Tensor, temperature: float, shape: torch.Size, at: Tensor) -> Tensor:
        """The teacher's log-probability of each of its labels, `[N, U]`, 0 where none counts."""

        def read(z: Tensor, _: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return (z.div(temperature).log_softmax(-1).gather(1, y[:, None])[:, 0],)

        (found,) = in_pieces(read, teacher.answer, teacher.answer, rows, rows, labels.clamp(min=0))
        return found.new_zeros(shape.numel()).index_put((at,), found).view(shape)


def _laid(batch: Batch, name: str, like: Tensor) -> Tensor:
    """A field of a batch as `[N, T]`."""
    if batch[name].numel() != like.numel():
        raise MismatchError(f"the field {name} is {list(batch[name].shape)} of answers to {list(like.shape)} tokens: take transfer: {{kind: retokenized}}")
    return batch[name].view(like.shape)


def _places(counts: Tensor, every: bool) -> Tensor:
    """Rows of flattened predictions that are read: those that count, or all of them."""
    return torch.arange(counts.numel(), device=counts.device) if every else counts.flatten().nonzero()[:, 0]


def _check(twins: Tensor, student: Knowledge, teacher: Knowledge) -> None:
    if len(twins) > teacher.answer.classes:
        raise MismatchError(
            f"the batch tells of {len(twins)} entries of the teacher's vocabulary, and the teacher answers {teacher.answer.classes}: name its own task as the "
            "transfer set's partner"
        )
