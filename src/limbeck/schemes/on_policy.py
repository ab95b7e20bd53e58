"""The student writes, the teacher scores: on-policy distillation of language models.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", ICLR 2024, arXiv:2306.13649 (GKD).
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from limbeck.bridges.writing import Reader, reader
from limbeck.core.ask import ask
from limbeck.core.errors import RecipeError
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses
from limbeck.core.task import Batch, Facts, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher

from ._checks import evaluating
from ._own_text import Pen, Turns, Writing, check_terms, live
from .offline import Offline

__all__ = ["OnPolicy"]

_TURN, _TEXT = 1, 2


class OnPolicy(Writing):
    """In a share of the steps the student writes what it learns on: each row's prompt is kept, the rest is its own, and the teacher scores it token by token.

    `L = (1 - share) E_data[D(p, q)(y | x)] + share E_{y ~ q(. | x)}[D(p, q)(y | x)]`, D the objectives, such as `response.divergence` with the generalised
    Jensen-Shannon divergence; nothing is differentiated through the writing. Agarwal et al. 2024, arXiv:2306.13649, algorithm 1, eq. 2.

    Whether a step's text is the student's depends on (seed, step) alone, and so do its tokens, with the rows' ids: a training that was resumed is the
    uninterrupted one. Objectives that read labels, such as `supervised`, count in the other steps, on the data: what a student says itself is no truth. A
    prompt is what the task masks before the first label that counts; of plain text, `prompt` of the row. The student writes in eval mode, keeping keys and
    values where its model can (`models.gpt`); each written token counts.

    Args:
        share: lambda, the share of steps in which the student writes, above 0 and at most 1.
        prompt: the share of a plain text that is read before the rest is written.
        tokens: how many are written at most; as many as there is room for where it is left out.
        temperature: of the student's draws; 0 takes the likeliest token.
        top_k: draw among so many of the likeliest alone.
        top_p: draw among the fewest that come to this probability together.

    Raises:
        RecipeError: a share that is none, or objectives that would never count.
        MismatchError: no teacher, one that cannot be asked about any text, or a task without token ids and labels.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: "nn.Module | Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None = None,
        example: object | None = None,
        facts: Facts | None = None,
        *,
        share: float = 0.5,
        prompt: float = 0.5,
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise RecipeError(f"share is {share:g}; it is the share of steps in which the student writes, above 0 and at most 1 (offline: it never does)")
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        check_terms("on-policy distillation", terms)
        live("on-policy distillation", None if teacher is None else as_teacher(teacher))
        task = default_task() if task is None else task
        self.pen = Pen(task, facts, prompt=prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        self.base = Offline(student, teacher, terms, task, example, facts)
        self._share, self.turns, self._told = share, Turns(), False
        self._labelled = [term.name for term in terms if term.objective.needs.labels]
        if len(self._labelled) == len(terms):
            raise RecipeError(
                f"{', '.join(self._labelled)} read labels, and the student's own text has none: add an objective of the teacher alone, such as "
                "{kind: response.divergence, divergence: jsd}"
            )
        if self._labelled and share == 1:
            raise RecipeError(f"share is 1, so that {', '.join(self._labelled)}, which count on the data alone, never would: leave them out, or lower share")

    def writes(self) -> bool:
        """Whether the student writes what it learns on in this step."""
        return self.turns.share(_TURN) < self._share

    def own(self, batch: Batch) -> dict[str, Tensor]:
        """Return a batch with what the student writes after its prompts in this step: labels are its tokens."""
        student, task = self.base.student, self.base.task

        def reads(segment: Tensor) -> Reader:
            return reader(student, task, segment, self.pen.classes)

        with evaluating(student):
            return self.pen.write(batch, reads, self.turns.draws(_TEXT))

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if not self.writes():
            return self.base(batch, phase)
        own = self.own(self.base.ready(batch))
        teacher = self.base.teacher
        assert teacher is not None
        heard = None if teacher.reads_student else teacher(own)
        student = ask(self.base.student, own, self.base.reads, self.base.task, side="student")
        found = self.base.cost(own, student, teacher(own, student) if heard is None else heard, labelled=False)
        return Losses(found.sums, found.count, {f"{name}_own": value for name, value in found.parts.items()})

    def news(self) -> Sequence[str]:
        """Which objectives the student's own text leaves out, once."""
        if self._told or not self._labelled:
            return ()
        self._told = True
        return (f"{', '.join(self._labelled)} read labels: they count on the data, not in the {self._share:.0%} of steps in which the student writes",)
