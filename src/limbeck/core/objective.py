"""An objective: what the student must match, and by how much it misses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from .errors import MismatchError, RecipeError
from .gather import gathered
from .knowledge import Dense, Knowledge, Needs, Response, TopK
from .schedule import Clock, Number, at, check_number
from .task import Batch, Facts, Task

__all__ = ["Clocked", "Contest", "Objective", "Term"]


class Clocked(nn.Module):
    """A module that is told where training stands, wherever it is in a scheme: an objective, a teacher, a layer whose mask follows a schedule."""

    clock: Clock = Clock()


class Objective(Clocked, ABC):
    """What the student must match, and by how much it misses.

    `forward` returns one loss per prediction, of the shape of the predictions (`[N]` for examples), or a scalar mean over the batch where `batchwise` is True;
    a scalar weighs as the batch's count of predictions. Learnable parts (projectors) are ordinary submodules, made in `bind`.
    """

    batchwise: bool = False
    perfect: Literal["zero", "stationary", "no"] = "zero"
    """What a student identical to the teacher costs: nothing, with a zero gradient; only a zero gradient; or neither."""
    usual: ClassVar[float] = 1.0
    """The weight that its paper, or its authors' code, gives it beside a cross-entropy of weight one: where a comparison begins to look."""
    undecided: bool = False
    """Whether `choose` must be called before `needs` can be read: its layers were left to be paired."""
    said: tuple[str, ...] = ()
    """What `choose` and `bind` decided that a person would want to know, a line each: layers that were paired, memory that will be taken."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What is read of the student, of the teacher and of the batch."""

    def choose(self, student: Knowledge, teacher: Knowledge | None) -> None:
        """Choose the layers to read by their `shapes`, where that was left open."""

    @abstractmethod
    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        """Check that both sides fit, and build projectors, from the records of one dry run.

        Raises MismatchError where they do not fit. Called again on a bound objective it only checks: what was learnt stays.
        """

    @abstractmethod
    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """Return the loss of each prediction, or a scalar where `batchwise`."""

    def graft(self, student: nn.Module) -> nn.Module:
        """Return what ships: the student itself, unless the objective's part belongs into it."""
        return student

    def after_step(self) -> None:
        """Follow an optimizer's step: what an objective remembers of it. Nothing, for most."""

    def now(self, number: Number) -> float:
        """Return a number or a schedule's value at this moment of training."""
        return at(number, self.clock)

    def __rmul__(self, weight: Number) -> "Term":
        return Term(self, weight)


class Contest(Objective):
    """An objective whose measure of the student learns too, against it: a discriminator. Each is a player, with a phase of its own in every step."""

    rounds: int = 1
    """Steps of the opponent before each of the student."""
    optimizer: ClassVar[Mapping[str, Any]] = {"kind": "adam", "lr": 1e-4, "betas": (0.0, 0.9)}
    """What the opponent steps with unless it is told otherwise, as a recipe writes it: Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1."""

    @property
    @abstractmethod
    def opponent(self) -> nn.Module:
        """What learns against the student, once `bind` has built it; a submodule of the objective."""

    @abstractmethod
    def oppose(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        """Return the opponent's own loss, of the form that `forward` has; what it reads carries no gradient to student or teacher."""

    @abstractmethod
    def told_apart(self, student: Knowledge, teacher: Knowledge | None) -> Tensor:
        """Return the share that the opponent gets right, of the form that `forward` has: 1/2 where it cannot tell the two apart, 1 where it always can."""


class Term(nn.Module):
    """An objective and its weight: `0.9 * KD(temperature=4.0)`; the weight may be a schedule.

    With `gather`, an objective that compares examples compares those of every process: what it reads is gathered, gradients and all.
    """

    def __init__(self, objective: Objective, weight: Number = 1.0, *, gather: bool = False) -> None:
        super().__init__()
        if not isinstance(objective, Objective):
            raise RecipeError(f"an objective is an Objective, such as KD(temperature=4.0), not {objective!r}")
        check_number("the weight of an objective", weight, positive=False)
        if gather and not objective.batchwise:
            raise RecipeError(f"{type(objective).__name__} looks at each example by itself, so that gather: true changes nothing: leave it out")
        self.objective = objective
        self.weight = weight
        self.gather = gather

    @property
    def name(self) -> str:
        """The part's name in logs: its file, without the folder."""
        return type(self.objective).__module__.rpartition(".")[2]

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch, *, opposing: bool = False) -> Tensor:
        """Return the objective's loss, unweighted; with `opposing`, its opponent's."""
        if self.gather:
            needs = self.objective.needs
            read = needs.fields | ({"label"} if needs.labels else set()) | ({"id"} if needs.ids else set())
            student, batch = _everyones(student), {name: gathered(batch[name]) for name in sorted(read)}
            teacher = None if teacher is None else _everyones(teacher)
        if opposing:
            assert isinstance(self.objective, Contest)
            return self.objective.oppose(student, teacher, batch)
        return self.objective(student, teacher, batch)


def _everyones(knowledge: Knowledge) -> Knowledge:
    """What the model said of the examples of all processes, by rank."""
    if knowledge.mask is not None:
        raise MismatchError("gather: true cannot put together what masks leave of different processes: train on one device")
    outputs = {name: _everyones_answer(said) for name, said in knowledge.outputs.items()}
    features = {name: gathered(value) for name, value in knowledge.features.items()}
    gradient = None if knowledge.input_gradient is None else gathered(knowledge.input_gradient)
    return Knowledge(outputs, features, None, knowledge.modules, gradient)


def _everyones_answer(said: Response) -> Response:
    if isinstance(said, TopK):
        return replace(said, log_probs=gathered(said.log_probs), indices=gathered(said.indices), log_tail=gathered(said.log_tail))
    return Dense(gathered(said.logits), said.link)
