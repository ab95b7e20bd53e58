"""One network with branches whose gated ensemble teaches each of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Batch, Facts, Task, default_task
from limbeck.core.teacher import Teacher

from ._checks import evaluating
from ._players import check_lessons
from ._split import Fork
from .offline import Offline


class ONE(Scheme):
    """One network with branches, made for training alone: their gated ensemble teaches each of them, and the student ships without them.

    `L = sum_i L_CE(z_i) + L_CE(z_e) + sum_i T^2 D_KL(p_e || p_i)`, `z_e = sum_i g_i z_i`, `g = softmax(gate(trunk))` (eq. 5 to 9), with
    `objectives: [{kind: response.kd, temperature: 3.0}, {kind: supervised}]`: objectives that ask a teacher are paid by each branch against the ensemble, the
    others by each branch and by the ensemble. The ensemble learns from the labels alone: what teaches carries no gradient.
    Lan, Zhu and Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv:1806.04606.

    The student's graph is cut at the layer `split`: all up to it is the trunk, which runs once per batch; all after it is a branch. The student is the trunk
    with the first branch; the others are copies of that branch, begun with its weights in random order. Its forward pass must be one that `torch.fx` traces.
    The losses of m branches are summed, so that the trunk's gradient is the larger: mind the learning rate of an optimizer that is not Adam's kind.

    Args:
        split: the path of the last layer that the branches share, such as layer2.
        branches: m, how many, the student's own among them.

    Raises:
        RecipeError: no such layer, fewer than two branches, or no objective that asks a teacher.
        MismatchError: a student that cannot be traced or cut there, a finished teacher beside it, or an objective that reads layers.
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
        split: str,
        branches: int = 3,
    ) -> None:
        super().__init__()
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        check_lessons("the ensemble of branches", teacher, terms)
        for term in terms:
            if term.objective.undecided or term.objective.needs.student != Reads() or term.objective.needs.teacher not in (None, Reads()):
                raise MismatchError(f"the objective {term.name} reads layers, and an ensemble of branches has its answers alone: take one of responses")
        if example is None:
            raise MismatchError("the branches' gate must be held by the optimizer from the start: give the scheme `example=` a batch")
        asked = default_task() if task is None else task
        self.fork = Fork(student, split, branches, asked.batch(example), asked)
        self._judged = any(term.objective.needs.teacher is None for term in terms)
        self.lesson = Offline(student, _Together(self.fork), terms, asked, example, facts)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"student": [*self.lesson.players()["student"], *(one for one in self.fork.parameters() if one.requires_grad)]}

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase != "student":
            raise RecipeError(f"the scheme has no phase {phase!r}; it has one, student")
        read = self.lesson.ready(batch)
        said, whole = self.fork.ask(read, self.lesson.task)
        taught = Knowledge({"main": Dense(whole.main.logits.detach(), whole.main.link)}, mask=whole.mask)
        costs = {"": self.lesson.cost(read, said[0], taught)}
        costs |= {f"branch{at}_": self.lesson.cost(read, one, taught) for at, one in enumerate(said[1:], 1)}
        if self._judged:
            costs["ensemble_"] = self.lesson.cost(read, whole, None)
        parts = {f"{whose}{name}": part for whose, cost in costs.items() for name, part in cost.parts.items()}
        return Losses({"student": torch.stack([cost.sums["student"] for cost in costs.values()]).sum()}, costs[""].count, parts)

    def shipped(self) -> dict[str, nn.Module]:
        return self.lesson.shipped()

    def after_step(self) -> None:
        self.lesson.after_step()


class _Together(Teacher):
    """What the branches of a fork say together, for the dry run that binds objectives."""

    def __init__(self, fork: Fork) -> None:
        super().__init__()
        self._fork = (fork,)
        self._task: Task | None = None

    def prepare(self, reads: Reads, task: Task) -> None:
        self._task = task

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        assert self._task is not None, "a teacher is prepared before it is asked"
        (fork,) = self._fork
        with evaluating(fork), evaluating(fork.model):
            return fork.ask(batch, self._task)[1]

    def after_step(self, student: nn.Module) -> None:
        """Branches move by the scheme's own steps."""
