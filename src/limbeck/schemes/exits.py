"""A network's deeper exits teach its earlier ones.

Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv:1905.08094.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from limbeck.core.errors import RecipeError
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import at
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Facts, Task
from limbeck.core.teacher import Teacher

from ._at_exits import AtExits
from ._checks import named
from .offline import Offline


class Exits(Scheme):
    """Every exit of a network learns, the earlier ones from the deepest: be your own teacher.

    With the teacher `exits`, `sum_{e < C} sum_i w_i L_i(q_e, q_C) + sum_j (w_j / W) L_j(q_C)`: e an earlier exit, C the deepest, j the objectives that ask
    no teacher, W the sum of their weights. With `response.kd` of weight a and `supervised` of weight 1 - a this is Zhang et al., "Be Your Own Teacher", ICCV
    2019, arXiv:1905.08094, sec. 3.2, whose deepest exit pays the whole cross-entropy; their hint, lambda ||F_e - F_C||^2, is `feature.fitnet` from the pooled
    feature of each exit to that of the network, of weight 2 lambda. No gradient comes to the deepest exit from those that it teaches.

    An objective of answers is met by every exit, one of layers once, by the layers that it names. Another teacher teaches every exit, the deepest too, by its
    exit of the same name where it has one; with no teacher every exit learns from the labels alone (deeply supervised).

    Raises:
        RecipeError: an objective that several exits cannot meet, or none that the deepest exit could learn from.
        MismatchError: a student with one answer alone, and whatever does not fit.
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
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        plain = [term for term in terms if not term.objective.undecided and term.objective.needs.teacher is None]

        def alone() -> float:
            total = sum(at(term.weight, term.objective.clock) for term in plain)
            return 1 / total if total > 0 else 0.0

        if terms and teacher is not None and not alone():
            raise RecipeError("nothing teaches the deepest exit: add an objective that asks no teacher, such as {kind: supervised, weight: 0.7}")
        everywhere = [Term(AtExits(term, alone), term.weight, gather=term.gather) for term in terms]
        self._names: dict[str, str] = dict(zip(named(everywhere), named(terms), strict=True))
        self.offline = Offline(student, teacher, everywhere, task, example, facts)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return self.offline.players()

    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        return {}

    def forward(self, batch: object, phase: str = "student") -> Losses:
        found = self.offline(batch, phase)
        return Losses(found.sums, found.count, {self._names[name]: value for name, value in found.parts.items()})

    def shipped(self) -> dict[str, nn.Module]:
        return self.offline.shipped()

    def after_step(self) -> None:
        self.offline.after_step()
