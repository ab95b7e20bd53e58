"""A finished teacher teaches one student."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import at
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.tap import check_paths
from limbeck.core.task import Batch, Facts, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher


class Offline(Scheme):
    """A finished teacher teaches one student; with no teacher and only the supervised objective, ordinary training.

    `loss = sum_i w_i L_i`, each `L_i` a mean over the batch's valid predictions.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    `objectives` are objectives or weighted ones (`0.9 * KD()`); a bare module as the teacher is a frozen one.
    `example`, a batch as the task's loader gives it, is needed where an objective builds a projector, so that `parameters()` holds it before an
    optimizer is made.

    Raises:
        RecipeError: no objective, or a layer that a model has not.
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
    ) -> None:
        super().__init__()
        _apart(teacher, student)
        self.student = student
        self.teacher = None if teacher is None else as_teacher(teacher)
        self._terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        self.terms = nn.ModuleList(self._terms)
        self.task = default_task() if task is None else task
        if not self._terms:
            raise RecipeError("a scheme without objectives has nothing to learn: give one or more, such as response.kd")
        self._facts = facts
        self._reads = Reads()
        self._names = self._name_terms()
        self._bound = self._late = False
        if not self._undecided:
            self._prepare()
        if example is not None:
            self.bind(self.task.batch(example))

    @property
    def _undecided(self) -> bool:
        return any(term.objective.undecided for term in self._terms)

    def _choose(self, batch: Batch) -> None:
        """Let the objectives whose layers were left open choose them by what both models show."""
        survey = Reads(shapes=True)
        student = ask(self.student, batch, survey, self.task, side="student")
        teacher: Knowledge | None = None
        if self.teacher is not None:
            self.teacher.prepare(survey, self.task)
            teacher = self.teacher(batch, student)
        for term in self._terms:
            if term.objective.undecided:
                term.objective.choose(student, teacher)
        self._prepare()

    def _name_terms(self) -> list[str]:
        names: list[str] = []
        for term in self._terms:
            count = sum(name.partition("#")[0] == term.name for name in names)
            names.append(term.name if not count else f"{term.name}#{count + 1}")
        return names

    def _prepare(self) -> None:
        teacher_reads: Reads | None = None
        for name, term in zip(self._names, self._terms, strict=True):
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
        modes = {module: module.training for module in self.student.modules()}
        self.student.eval()
        try:
            if self._undecided:
                self._choose(batch)
            self._check_fields(batch)
            student, teacher = self._ask(batch)
        finally:
            for module, mode in modes.items():
                module.training = mode
        for term in self._terms:
            term.objective.bind(student, teacher, self.task, self._facts)
        self._bound, self._late = True, False

    def _check_fields(self, batch: Batch) -> None:
        for name, term in zip(self._names, self._terms, strict=True):
            needs = term.objective.needs
            if needs.labels and "label" not in batch:
                raise MismatchError(f"the objective {name} needs labels and the batch has none (fields {', '.join(batch)}): leave it out, or give (x, y)")
            if needs.ids and "id" not in batch:
                raise MismatchError(
                    f"the objective {name} needs to know which example is which and the batch has no field 'id' (fields {', '.join(batch)}): "
                    'give mappings {"input": x, "label": y, "id": an int64 for each example}'
                )
            if missing := needs.fields - set(batch):
                raise MismatchError(f"the objective {name} reads the field {sorted(missing)[0]!r} and the batch has {', '.join(batch)}")

    def _ask(self, batch: Batch) -> tuple[Knowledge, Knowledge | None]:
        if self.teacher is None or not self._asks_teacher:
            return self._ask_student(batch), None
        if self.teacher.reads_student:
            student = self._ask_student(batch)
            return student, self.teacher(batch, student)
        teacher = self.teacher(batch)
        return self._ask_student(batch), teacher

    def _ask_student(self, batch: Batch) -> Knowledge:
        return ask(self.student, batch, self._reads, self.task, side="student")

    def forward(self, batch: object, phase: str = "student") -> Losses:
        read = self.task.batch(batch)
        if not self._bound:
            before = sum(1 for _ in self.parameters())
            self.bind(read)
            self._late = sum(1 for _ in self.parameters()) != before
        if self._late:
            raise MismatchError("an objective builds a projector, which the optimizer must hold from the start: give the scheme `example=` a batch")
        student, teacher = self._ask(read)
        mask = student.mask
        logits = student.main.logits
        count = logits.new_tensor(float(logits[..., 0].numel()), dtype=torch.float32) if mask is None else mask.sum(dtype=torch.float32)
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for name, term in zip(self._names, self._terms, strict=True):
            each = term(student, teacher, read)
            if term.objective.batchwise:
                summed = each * count
            elif mask is None:
                summed = each.sum()
            else:
                summed = torch.where(mask, each, each.new_zeros(())).sum()
            parts[name] = summed.detach()
            weighted = at(term.weight, term.objective.clock) * summed
            total = weighted if total is None else total + weighted
        assert total is not None
        return Losses({"student": total}, count, parts)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"student": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def shipped(self) -> dict[str, nn.Module]:
        student = self.student
        for term in self._terms:
            student = term.objective.graft(student)
        return {"student": student}

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.after_step(self.student)


def _apart(teacher: "nn.Module | Teacher | None", student: nn.Module) -> None:
    """Refuse a bare module as the teacher that shares a parameter with its student: it would learn too, in silence."""
    if teacher is None or isinstance(teacher, Teacher):
        return
    learns = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    shared = [name for name, parameter in teacher.named_parameters() if id(parameter) in learns]
    if shared:
        raise MismatchError(f"teacher and student share the parameter {shared[0]!r}, so that the teacher would learn too: give it copy.deepcopy of the model")
