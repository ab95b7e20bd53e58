"""One objective at every exit of a network. Shapes: N predictions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Contest, Objective, Term

if TYPE_CHECKING:
    from limbeck.core.task import Batch, Facts, Task

__all__ = ["AtExits"]


class AtExits(Objective):
    """The sum over exits e of one objective, each exit's answer in the place of the main one: sum_e L(student_e, teacher_e).

    teacher_e is what the teacher's output e says, or its main one where it has no e. Where it has neither, nobody teaches e: an objective that asks a teacher
    leaves it out, and one that asks none is multiplied by `alone()`. An objective that reads layers is asked once, about the layers that it names.

    Raises:
        RecipeError: a contest, or an objective that pairs its layers by itself or builds on the teacher's.
    """

    perfect = "no"

    def __init__(self, term: Term, alone: Callable[[], float]) -> None:
        super().__init__()
        of = term.objective
        if isinstance(of, Contest):
            raise RecipeError(f"the objective {term.name} is a contest, which plays against one answer, and a network with exits has several: leave it out")
        if of.undecided:
            raise RecipeError(f"the objective {term.name} is to pair layers of a network with its own: name them, layers: {{exits.exit1.pool: of.pool}}")
        reads = of.needs.teacher
        if reads is not None and reads.modules:
            raise RecipeError(f"the objective {term.name} builds on the teacher's layers, which exits that learn together do not hand over: leave it out")
        self.of = of
        self.batchwise = of.batchwise
        self._alone = alone
        self._layers = bool(of.needs.student.features) or (reads is not None and bool(reads.features))

    @property
    def needs(self) -> Needs:
        """What the objective needs; what it reads of the teacher is read of the student too, whose own layers may be the teacher's."""
        one = self.of.needs
        return one if one.teacher is None else replace(one, student=one.student | one.teacher)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: "Task", facts: "Facts | None") -> None:
        if len(student.outputs) < 2:
            raise MismatchError("the student has one answer, 'main', and no exits: take a model such as {kind: exits, of: {kind: cnn}, at: [layer1]}")
        for ours, theirs, _ in self._each(student, teacher):
            self.of.bind(ours, theirs, task, facts)
        self.said = self.of.said

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: "Batch") -> Tensor:
        losses = [factor * self.of(ours, theirs, batch) for ours, theirs, factor in self._each(student, teacher)]
        total = losses[0]
        for one in losses[1:]:
            total = total + one
        return total

    def _each(self, student: Knowledge, teacher: Knowledge | None) -> Iterator[tuple[Knowledge, Knowledge | None, float]]:
        """What every exit says, who teaches it, and how much of the loss is taken."""
        if self._layers:
            yield student, teacher, 1.0
            return
        asks = self.of.needs.teacher is not None
        for name in (*(one for one in student.outputs if one != "main"), "main"):
            ours = replace(student, outputs={"main": student.outputs[name]})
            found = None if teacher is None else teacher.outputs.get(name, teacher.outputs.get("main"))
            if found is not None and teacher is not None:
                yield ours, replace(teacher, outputs={"main": found}), 1.0
            elif not asks:
                yield ours, None, 1.0 if teacher is None else self._alone()

    def after_step(self) -> None:
        self.of.after_step()
