"""The student of the last epoch softens the labels of this one, more from epoch to epoch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import Clock
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from ._checks import named
from .offline import Offline

__all__ = ["Progressive", "share"]


def share(clock: Clock, alpha: float) -> float:
    """Return alpha_t = alpha t / T in epoch t of T, counted from 1; none in the first, which has no past.

    >>> share(Clock(0.5, 10), 0.8), share(Clock(4.0, 10), 0.8)
    (0.0, 0.4)
    """
    t = math.floor(clock.epoch + 1e-9) + 1
    return alpha * t / clock.epochs if t > 1 else 0.0


class Progressive(Scheme):
    """Progressive self-distillation: the labels are softened by what the student said of the same inputs an epoch ago.

    `loss = H((1 - alpha_t) y + alpha_t p_{t-1}, p_t)`, alpha_t = alpha t / T in epoch t of T, p_{t-1} the answer of the student as it was when the epoch began.
    Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021, arXiv:2006.12000, eqs. 3 and 4. The first epoch has no past and
    learns from the labels alone, as in the authors' code. The past answers about this epoch's view of an example (the paper's way for ImageNet), without
    dropout, where their code for CIFAR keeps what was said of the last epoch's view.

    It takes the place of the objective `supervised`, whose weight it has; other objectives stay as they are. The teacher is {kind: snapshot, every: 1} where
    the stage has none; another (a mean teacher) speaks in its place.

    Args:
        alpha: alpha_T, the share of the past in the last epoch; the paper takes 0.8 on CIFAR-100 and 0.3 on ImageNet.

    Raises:
        RecipeError: a share outside [0, 1], or no `supervised` objective, or two.
        MismatchError: answers that are no choice of one class.
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
        alpha: float = 0.8,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise RecipeError(f"alpha is {alpha:g}; it is a share, 0 or more and at most 1")
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        count = [term.name for term in terms].count("supervised")
        if count != 1:
            raise RecipeError(f"progressive softens the labels of the objective supervised, and there are {count or 'none'}: give one, {{kind: supervised}}")
        past = lookup.build("teachers", "snapshot", {"every": 1}, student) if teacher is None else teacher
        softened = [Term(_Softened(term.objective, alpha), term.weight) if term.name == "supervised" else term for term in terms]
        self._names: dict[str, str] = dict(zip(named(softened), named(terms), strict=True))
        self.offline = Offline(student, past, softened, task, example, facts)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return self.offline.players()

    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        return self.offline.optimizers()

    def forward(self, batch: object, phase: str = "student") -> Losses:
        found = self.offline(batch, phase)
        return Losses(found.sums, found.count, {self._names.get(name) or name: value for name, value in found.parts.items()})

    def shipped(self) -> dict[str, nn.Module]:
        return self.offline.shipped()

    def after_step(self) -> None:
        self.offline.after_step()


class _Softened(Objective):
    """(1 - alpha_t) times the loss of the labels, plus alpha_t times the cross-entropy with the past's answer: the cross-entropy with the mixed target."""

    perfect = "no"

    def __init__(self, labels: Objective, alpha: float) -> None:
        super().__init__()
        self.labels = labels
        self.past: Objective = lookup.build("objectives", "response.soft_cross_entropy", {"temperature": 1.0})
        self.alpha = alpha

    @property
    def needs(self) -> Needs:
        return Needs(labels=True)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        if student.main.link != "softmax":
            raise MismatchError(f"progressive mixes labels with probabilities of one class of several, and the answers are {student.main.link}: use offline")
        self.labels.bind(student, None, task, facts)
        self.past.bind(student, teacher, task, facts)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        share_of_past = share(self.clock, self.alpha)
        return (1 - share_of_past) * self.labels(student, None, batch) + share_of_past * self.past(student, teacher, batch)
