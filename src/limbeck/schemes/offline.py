"""A finished teacher teaches one student."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Hidden, Knowledge, Reads
from limbeck.core.objective import Contest, Objective, Term
from limbeck.core.schedule import at
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.tap import check_paths, eagerly
from limbeck.core.task import Batch, Facts, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher

from ._balance import Balance, GradientNorm
from ._checks import check_apart, check_company, check_fields, check_runs, evaluating, named
from ._contest import LastSaid, still, unmoved


class Offline(Scheme):
    """A finished teacher teaches one student; with no teacher and only the supervised objective, ordinary training.

    `loss = sum_i w_i L_i`, each `L_i` a mean over the batch's valid predictions.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    `objectives` are objectives or weighted ones (`0.9 * KD()`); a bare module as the teacher is a frozen one.
    `example`, a batch as the task's loader gives it, is needed where an objective builds a projector, so that `parameters()` holds it before an
    optimizer is made.

    An objective that is a contest adds a player of its name, its opponent, and as many phases of it as it has rounds before the student's in each step. In
    an opponent's phase the student answers in its present mode and without gradient, and its running statistics stay; rounds on one batch ask it once. A loop
    of one's own steps the optimizer of each phase's player: `for phase in kd.phases: kd(batch, phase).loss.backward()`, and calls `kd.after_step()` at the end.

    Args:
        balance: gradient_norm, or a mapping with it as the kind and `every`, the forward passes of training between two measurements: hold the gradient of
            each objective but the supervised one at `weight` times the supervised one's; weights sum the losses where it is left out.

    Raises:
        RecipeError: no objective, a layer that a model has not, or a balance without a supervised objective.
        MismatchError: teacher, student and objectives do not fit.
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
        balance: Literal["gradient_norm"] | GradientNorm | None = None,
    ) -> None:
        super().__init__()
        check_apart(teacher, student)
        self.student = student
        self.teacher = None if teacher is None else as_teacher(teacher)
        self._terms = named(one if isinstance(one, Term) else Term(one) for one in objectives)
        self.terms = nn.ModuleList(self._terms.values())
        self.task = default_task() if task is None else task
        if not self._terms:
            raise RecipeError("a scheme without objectives has nothing to learn: give one or more, such as response.kd")
        how = GradientNorm() if balance == "gradient_norm" else balance
        self.balance = None if how is None else Balance(how, list(self._terms.values()))
        self._contests = {name: term.objective for name, term in self._terms.items() if isinstance(term.objective, Contest)}
        self.phases = (*(name for name, contest in self._contests.items() for _ in range(contest.rounds)), "student")
        self._last = LastSaid()
        self._facts = facts
        self._reads = Reads()
        self._labels: set[str] = set()
        self._bound = self._late = False
        if not self._undecided:
            self._prepare()
        if example is not None:
            self.bind(self.task.batch(example))

    @property
    def _undecided(self) -> bool:
        return any(term.objective.undecided for term in self._terms.values())

    def _choose(self, batch: Batch) -> None:
        """Let the objectives whose layers were left open choose them by what both models show."""
        survey = Reads(shapes=True)
        student = ask(self.student, batch, survey, self.task, side="student")
        teacher: Knowledge | None = None
        if self.teacher is not None:
            self.teacher.prepare(survey, self.task)
            teacher = self.teacher(batch, student)
        for term in self._terms.values():
            if term.objective.undecided:
                term.objective.choose(student, teacher)
        self._prepare()

    def _prepare(self) -> None:
        teacher_reads: Reads | None = None
        for name, term in self._terms.items():
            needs = term.objective.needs
            self._reads |= needs.student
            if needs.teacher is None:
                continue
            if self.teacher is None:
                raise MismatchError(f"the objective {name} needs a teacher, and there is none: give one, or drop the objective")
            teacher_reads = needs.teacher | (teacher_reads or needs.teacher)
        check_paths(self.student, self._reads.features | self._reads.modules, "student")
        self._asks_teacher = teacher_reads is not None
        if self.teacher is not None:
            self.teacher.prepare(teacher_reads or Reads(), self.task)

    @torch.no_grad()
    def bind(self, batch: Batch) -> None:
        """Check both sides against one batch and let the objectives build their projectors; the student's statistics and mode stay as they were.

        So does the random state, but for what the projectors' first weights draw.
        """
        with eagerly(), evaluating(self.student):
            if self._undecided:
                self._choose(batch)
            check_fields(self._terms, batch)
            student, teacher = self._ask(batch)
            check_company(self._terms, _count(student))
        if self.balance is not None and isinstance(student.answer, Hidden):
            raise MismatchError(
                f"balance goes back through each objective by itself, and {type(self.student).__name__} answers by states and a head, whose losses go "
                "back once: leave balance out, and set weights"
            )
        for term in self._terms.values():
            term.objective.bind(student, teacher, self.task, self._facts)
        if (ships := self.shipped()["student"]) is not self.student:
            with eagerly(), evaluating(ships):
                check_runs(ships, batch, self.task)
        self._labels = {name for name, term in self._terms.items() if term.objective.needs.labels}
        self._bound, self._late = True, False

    def _ask(self, batch: Batch) -> tuple[Knowledge, Knowledge | None]:
        if self.teacher is None or not self._asks_teacher:
            return self._ask_student(batch), None
        if self.teacher.reads_student:
            student = self._ask_student(batch)
            return student, self.teacher(batch, student)
        heard = self._last.recall(batch, self.student)
        teacher = self.teacher(batch) if heard is None else heard[1]
        return self._ask_student(batch), teacher

    def _ask_student(self, batch: Batch) -> Knowledge:
        return ask(self.student, batch, self._reads, self.task, side="student")

    def _overheard(self, batch: Batch) -> tuple[Knowledge, Knowledge | None]:
        """What student and teacher say for an opponent to hear: without a gradient, and leaving no trace in the student's buffers."""
        said = self._last.recall(batch, self.student)
        if said is None:
            with torch.no_grad(), unmoved(self.student):
                said = self._ask(batch)
            self._last.keep(batch, self.student, said)
        return said

    @property
    def reads(self) -> Reads:
        """What the objectives read of the student."""
        return self._reads

    def ready(self, batch: object) -> Batch:
        """Return a batch as the task reads it; the first one binds what is not bound yet."""
        read = self.task.batch(batch)
        if not self._bound:
            before = sum(1 for _ in self.parameters())
            self.bind(read)
            self._late = sum(1 for _ in self.parameters()) != before
        if self._late:
            raise MismatchError("an objective builds a projector, which the optimizer must hold from the start: give the scheme `example=` a batch")
        return read

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase not in self.phases:
            raise RecipeError(f"the scheme has no phase {phase!r}{did_you_mean(phase, self.phases)}")
        read = self.ready(batch)
        if phase != "student":
            return self._opponents_loss(read, phase)
        with still(self._opponents()):
            return self._students_loss(read)

    def _opponents_loss(self, batch: Batch, name: str) -> Losses:
        term = self._terms[name]
        student, teacher = self._overheard(batch)
        count = _count(student)
        summed = _summed(term, term(student, teacher, batch, opposing=True), student.mask, student, count)
        with torch.no_grad():
            right = _summed(term, self._contests[name].told_apart(student, teacher), student.mask, student, count)
        return Losses({name: summed}, count, {f"{name}_opponent": summed.detach(), f"{name}_accuracy": right})

    def _students_loss(self, batch: Batch) -> Losses:
        student, teacher = self._ask(batch)
        self._last.drop()
        return self.cost(batch, student, teacher)

    def cost(self, batch: Batch, student: Knowledge, teacher: Knowledge | None, *, labelled: bool = True) -> Losses:
        """What was said of a batch costs the student; without a teacher's word, what the objectives that ask no teacher make of it, one at the least.

        Where its labels are nobody's truth (`labelled` False), objectives that read labels are left out.
        """
        terms = {name: term for name, term in self._terms.items() if teacher is not None or term.objective.needs.teacher is None}
        terms = {name: term for name, term in terms.items() if labelled or not term.objective.needs.labels}
        count = _count(student)
        known = _labelled(student, batch)
        sums: dict[str, Tensor] = {}
        for name, term in terms.items():
            said = known if name in self._labels else student
            summed = _summed(term, term(said, teacher, batch), said.mask, student, count)
            fewer = said is not student and not term.objective.batchwise
            sums[name] = summed * (count / _count(said).clamp(min=1)) if fewer else summed
        parts = {name: summed.detach() for name, summed in sums.items()}
        factors = [at(term.weight, term.objective.clock) for term in terms.values()]
        if self.balance is not None:
            assert len(terms) == len(self._terms), "shares are of all objectives"
            learning = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
            factors = self.balance(list(sums.values()), factors, count, learning)
            parts |= {f"{name}_gradient_norm": norm * count for name, norm in zip(self._terms, self.balance.norms, strict=True)}
        first, *rest = (factor * summed for factor, summed in zip(factors, sums.values(), strict=True))
        return Losses({"student": sum(rest, start=first)}, count, parts)

    def _opponents(self) -> list[nn.Parameter]:
        return [parameter for contest in self._contests.values() for parameter in contest.opponent.parameters()]

    def players(self) -> dict[str, list[nn.Parameter]]:
        if self._contests and not self._bound:
            raise MismatchError(f"the opponent {next(iter(self._contests))} is not built yet: give the scheme `example=` a batch")
        theirs = {id(parameter) for parameter in self._opponents()}
        opponents = {name: [one for one in contest.opponent.parameters() if one.requires_grad] for name, contest in self._contests.items()}
        return {"student": [one for one in self.parameters() if one.requires_grad and id(one) not in theirs], **opponents}

    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        return {name: contest.optimizer for name, contest in self._contests.items()}

    def shipped(self) -> dict[str, nn.Module]:
        student = self.student
        for term in self._terms.values():
            student = term.objective.graft(student)
        return {"student": student}

    def after_step(self) -> None:
        self._last.drop()
        if self.teacher is not None:
            self.teacher.after_step(self.student)
        for term in self._terms.values():
            term.objective.after_step()


def _count(student: Knowledge) -> Tensor:
    """How many predictions are valid, a float32 scalar."""
    answer, mask = student.answer, student.mask
    device = answer.states.device if isinstance(answer, Hidden) else student.main.logits.device
    return torch.tensor(float(answer.predictions.numel()), device=device) if mask is None else mask.sum(dtype=torch.float32)


def _labelled(student: Knowledge, batch: Batch) -> Knowledge:
    """What the student says, of labelled predictions alone, where the batch says by `labelled [N]` which these are."""
    if "labelled" not in batch:
        return student
    return replace(student, mask=batch["labelled"] if student.mask is None else student.mask & batch["labelled"])


def _summed(term: Term, each: Tensor, mask: Tensor | None, student: Knowledge, count: Tensor) -> Tensor:
    """The loss of an objective, summed over the predictions that count for it; one of a whole example of several predictions counts for each of them."""
    if term.objective.batchwise:
        return each * count
    if mask is not None and each.shape != mask.shape and each.shape == mask.shape[:1]:
        return (each * mask.flatten(1).sum(1)).sum()
    if mask is not None:
        return torch.where(mask, each, each.new_zeros(())).sum()
    several = each.numel() != student.answer.predictions.numel()  # one loss an example, where an example is several predictions
    return each.mean() * count if several else each.sum()
