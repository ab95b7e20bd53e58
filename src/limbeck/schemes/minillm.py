"""The reverse KL over whole texts, by policy gradient: the student writes with its teacher's help, and learns what its words lead to.

Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv:2306.08543.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges.writing import IGNORED, Reader, reader
from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Reads, Response
from limbeck.core.lookup import find
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import check_number
from limbeck.core.scheme import Losses
from limbeck.core.task import Facts, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher

from ._checks import evaluating
from ._own_text import Pen, Turns, Writing, check_terms, live
from ._policy_gradient import runs, scored, surrogate
from .offline import Offline

__all__ = ["MiniLLM"]

_TEXT = 1


class MiniLLM(Writing):
    """The student minimises KL(q || p) over whole texts by its policy gradient; the stage's objectives, a language model's own above all, count on the data.

    `grad L = -E_{y ~ p~}[ sum_t w_t ( grad sum_v q log(p / q)  +  R_{t+1} grad log q(y_t) ) ] + grad L_data`, p~ = alpha p + (1 - alpha) q the text's author,
    w_t = q / p~ of its token, R_{t+1} the mean of log(p / q) over the tokens after t. Gu et al. 2024, arXiv:2306.08543, eq. 2 to 8 and algorithm 1: single-step
    decomposition, teacher-mixed sampling, length normalisation. Every text is used once, in the step in which it is written, so that nothing is clipped.

    In every step the batch is read twice: its prompts are written on, and its own text is what the objectives see: `{kind: supervised}` is the paper's
    language modelling on a pretraining corpus (L_PT). What is written depends on (seed, step, the row's id): a training that was resumed is the uninterrupted
    one. The loss is one mean over all predictions, those of the written tokens and those of the data; what is logged is a mean over its own. Logits of the
    written tokens are computed in pieces.

    Args:
        alpha: the teacher's share in what is written, from 0 to below 1.
        normalize: take the mean of what comes after a token in the place of the sum, so that long texts are not punished.
        single_step: take each step's reverse KL exactly; without it the plain estimate of higher variance.
        weight: of the policy gradient beside the objectives.
        prompt: the share of a plain text that is read before the rest is written.
        tokens: how many are written at most; as many as there is room for where it is left out.

    Raises:
        RecipeError: shares or numbers that cannot be meant.
        MismatchError: no teacher, one that is no frozen model where alpha is above 0, or a task without token ids and labels.
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
        alpha: float = 0.2,
        normalize: bool = True,
        single_step: bool = True,
        weight: float = 1.0,
        prompt: float = 0.5,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise RecipeError(f"alpha is {alpha:g}; it is the teacher's share in what is written, from 0 to below 1")
        check_number("weight", weight, positive=True)
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        check_terms("MiniLLM", terms)
        asked = live("MiniLLM", None if teacher is None else as_teacher(teacher))
        if alpha and not isinstance(asked, find("teachers", "frozen")):
            raise MismatchError(
                f"with alpha {alpha:g} the teacher writes too, and {type(asked).__name__} is no frozen model: take {{kind: frozen}}, or alpha: 0"
            )
        task = default_task() if task is None else task
        self.pen = Pen(task, facts, prompt=prompt, tokens=tokens)
        self.base = Offline(student, teacher, terms, task, example, facts)
        self._alpha, self._normalize, self._single, self._weight = alpha, normalize, single_step, weight
        self.turns = Turns()

    def forward(self, batch: object, phase: str = "student") -> Losses:
        read = self.base.ready(batch)
        student, task, teacher = self.base.student, self.base.task, self.base.teacher
        assert teacher is not None

        def reads(segment: Tensor) -> Reader:
            own = reader(student, task, segment, self.pen.classes)
            if not self._alpha:
                return own
            wise: Any = teacher
            wise.model.eval()
            return _Mixed(own, reader(wise.model, task, segment, self.pen.classes), self._alpha)

        with evaluating(student):
            text = self.pen.write(read, reads, self.turns.draws(_TEXT))
        heard = None if teacher.reads_student else teacher(text)
        said = ask(student, text, Reads(), task, side="student")
        policy, kl, count = self._policy(said, teacher(text, said) if heard is None else heard, text)
        data = self.base(batch, phase)
        both = data.count + count
        written, given = both / count.clamp(min=1), both / data.count.clamp(min=1)  # what is logged is a mean of its own
        parts = {"policy": policy.detach() * written, "reverse_kl": kl * written, **{name: value * given for name, value in data.parts.items()}}
        return Losses({"student": data.sums["student"] + self._weight * policy}, both, parts)

    def _policy(self, student: Knowledge, teacher: Knowledge, text: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The surrogate's sum, the reverse KL's of the steps, and how many tokens were written."""
        counts = text["label"] != IGNORED
        log_q, log_p, kl = scored(_some(student.answer, counts), _some(teacher.answer, counts), text["label"][counts], self.pen.classes)
        rows = [each.new_zeros(counts.shape).masked_scatter(counts, each) for each in (log_q, log_p, kl)]
        run = runs(counts, text.get("segment"))
        each = surrogate(rows[0], rows[1], rows[2], run, alpha=self._alpha, normalize=self._normalize, single_step=self._single)
        return each.sum(), kl.detach().sum(), counts.sum(dtype=torch.float32)


class _Mixed:
    """Two readers whose probabilities are mixed: log(alpha p + (1 - alpha) q)."""

    def __init__(self, student: Reader, teacher: Reader, alpha: float) -> None:
        self._sides = ((student, math.log(1 - alpha)), (teacher, math.log(alpha)))

    def __call__(self, tokens: Tensor) -> Tensor:
        ours, theirs = (side(tokens) for side, _ in self._sides)
        assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        return torch.logaddexp(ours.log_softmax(-1) + self._sides[0][1], theirs.log_softmax(-1) + self._sides[1][1])

    def take(self, rows: Tensor) -> None:
        for side, _ in self._sides:
            side.take(rows)


def _some(answer: Response, counts: Tensor) -> Response:
    """An answer of the predictions that count, in a row."""
    if isinstance(answer, Hidden):
        return replace(answer, states=answer.states[counts])
    return replace(answer, logits=answer.logits[counts]) if isinstance(answer, Dense) else answer
