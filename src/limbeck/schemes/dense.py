"""Several finished teachers teach one student, each by itself, and at random some stay away: the step of densely guided distillation.

Son et al., "Densely Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021, arXiv:2009.08825.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Facts, Task, default_task
from limbeck.core.teacher import Teacher

from ._checks import named
from ._each import Each, Roll, members_of
from .offline import Offline


class Dense(Scheme):
    """Several finished teachers teach one student, each by itself, and at random some stay away: `assistants` makes the stages that it is for.

    `loss = sum_i w_i (1/M) sum_m b_m L_i(student, teacher_m)`, with each L_i that asks no teacher as it is; b_m is zero with probability `drop`, drawn anew for
    every step, and one otherwise. Matching M teachers one by one is not matching their mean: each is softened by itself. Son et al. 2021, arXiv:2009.08825,
    sum over teachers beside M times the cross-entropy, which is M times this mean: here a weight means what it means with one teacher, and so does a learning
    rate. At least one teacher teaches in every step.

    The teacher is an `ensemble`, whose average is not asked. An objective of layers names those of every teacher: `layers: {layer3: layer3}`.

    Args:
        drop: the probability with which a teacher stays away from a step; 0 for none ever.

    Raises:
        RecipeError: a probability outside [0, 1), or an objective that cannot be met by several teachers.
        MismatchError: no teacher, one of a single voice, or no batch to ask it about.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: "Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None = None,
        example: object | None = None,
        facts: Facts | None = None,
        *,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise RecipeError(f"drop is {drop:g}; it is a probability, 0 or more and less than 1")
        if teacher is None:
            raise MismatchError("several teachers are to teach and there is none: take {kind: ensemble, of: [one, other]}")
        if example is None:
            raise MismatchError("how many teachers there are shows when they are asked: give the scheme `example=` a batch")
        task = default_task() if task is None else task
        teacher.prepare(Reads(), task)
        with torch.no_grad():
            self.roll = Roll(members_of(teacher(task.batch(example))), drop)
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        guided = [_by_each(term, self.roll) for term in terms]
        self._names: dict[str, str] = dict(zip(named(guided), named(terms), strict=True))
        self.offline = Offline(student, teacher, guided, task, example, facts)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return self.offline.players()

    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        return self.offline.optimizers()

    def forward(self, batch: object, phase: str = "student") -> Losses:
        found: Losses = self.offline(batch, phase)
        return Losses(found.sums, found.count, {self._names.get(name, name): value for name, value in found.parts.items()})

    def shipped(self) -> dict[str, nn.Module]:
        return self.offline.shipped()

    def after_step(self) -> None:
        self.offline.after_step()
        self.roll.advance()


def _by_each(term: Term, roll: Roll) -> Term:
    """An objective that asks a teacher, asked of each."""
    if not term.objective.undecided and term.objective.needs.teacher is None:
        return term
    return Term(Each(term.objective, term.name, roll), term.weight, gather=term.gather)
