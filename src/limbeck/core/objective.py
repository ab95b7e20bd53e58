"""An objective: what the student must match, and by how much it misses."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from .errors import RecipeError
from .knowledge import Knowledge, Needs
from .schedule import Clock, Number, at, check_number

if TYPE_CHECKING:
    from .task import Batch, Facts, Task

__all__ = ["Objective", "Term"]


class Objective(nn.Module, ABC):
    """What the student must match, and by how much it misses.

    `forward` returns one loss per prediction, of the shape of the predictions (`[N]` for examples), or a scalar mean over the batch where `batchwise` is True;
    a scalar weighs as the batch's count of predictions. Learnable parts (projectors) are ordinary submodules, made in `bind`.
    """

    batchwise: bool = False
    perfect: Literal["zero", "stationary", "no"] = "zero"
    """What a student identical to the teacher costs: nothing, with a zero gradient; only a zero gradient; or neither."""
    clock: Clock = Clock()

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What is read of the student, of the teacher and of the batch."""

    @abstractmethod
    def bind(self, student: Knowledge, teacher: Knowledge | None, task: "Task", facts: "Facts | None") -> None:
        """Check that both sides fit, and build projectors, from the records of one dry run.

        Raises MismatchError where they do not fit. Called again on a bound objective it only checks: what was learnt stays.
        """

    @abstractmethod
    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: "Batch") -> Tensor:
        """Return the loss of each prediction, or a scalar where `batchwise`."""

    def graft(self, student: nn.Module) -> nn.Module:
        """Return what ships: the student itself, unless the objective's part belongs into it."""
        return student

    def now(self, number: Number) -> float:
        """Return a number or a schedule's value at this moment of training."""
        return at(number, self.clock)

    def __rmul__(self, weight: Number) -> "Term":
        return Term(self, weight)


class Term(nn.Module):
    """An objective and its weight: `0.9 * KD(temperature=4.0)`; the weight may be a schedule."""

    def __init__(self, objective: Objective, weight: Number = 1.0) -> None:
        super().__init__()
        if not isinstance(objective, Objective):
            raise RecipeError(f"an objective is an Objective, such as KD(temperature=4.0), not {objective!r}")
        check_number("the weight of an objective", weight, positive=False)
        self.objective = objective
        self.weight = weight

    @property
    def name(self) -> str:
        """The part's name in logs: its file, without the folder."""
        return type(self.objective).__module__.rpartition(".")[2]
