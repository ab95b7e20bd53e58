"""A scheme: who teaches whom, and when; a course: a scheme over time, which is ordinary stages one after another."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .errors import MismatchError
from .objective import Clocked
from .schedule import Clock
from .task import Batch

__all__ = ["Course", "Losses", "Scheme", "Way"]


@dataclass
class Losses:
    """What one forward pass of a scheme cost.

    `sums`: player -> weighted loss, summed over the valid predictions, with a graph; `count`: how many predictions those were, a scalar tensor;
    `parts`: objective -> its unweighted loss, summed likewise, detached.
    """

    sums: dict[str, Tensor]
    count: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The mean over valid predictions, for a scheme with one player: what a loop of one's own calls `backward` on.

        Zero, with a graph, where no prediction is valid.
        """
        if len(self.sums) != 1:
            raise MismatchError(f"a scheme with players {', '.join(self.sums)} has no single loss: take `sums[player] / count` for each")
        return next(iter(self.sums.values())) / self.count.clamp(min=1)


class Scheme(nn.Module, ABC):
    """Every player and objective, and what each player's loss is on a batch.

    The loop wraps the whole scheme once; a user's own loop calls it as a module: `loss = scheme(batch).loss`.
    """

    phases: Sequence[str] = ("student",)
    """What a step consists of: one forward pass and one optimizer's step each, of the player of that name."""
    _heard: tuple[int, list[Clocked]] | None = None

    @abstractmethod
    def players(self) -> dict[str, list[nn.Parameter]]:
        """Who learns: player -> parameters."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        """Player -> the optimizer that it takes unless it is told otherwise, as a recipe writes it; the others take what the student takes."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str = "student") -> Losses:
        """What a batch costs the player of a phase."""

    @abstractmethod
    def shipped(self) -> dict[str, nn.Module]:
        """Player -> the module to validate, publish and export, grafts included, without what only training needs."""

    @abstractmethod
    def after_step(self) -> None:
        """Let teachers that follow the student follow it."""

    def specs(self) -> Mapping[str, Mapping[str, Any]]:
        """Player -> the model that it is, as a recipe writes it, for shipped players that the scheme made itself; the others are of the student's kind."""
        return {}

    def leave(self, folder: Path) -> None:
        """Put into the student's artifact what belongs beside its weights: examples that were made, a memory. Nothing, for most."""

    def news(self) -> Sequence[str]:
        """What has happened since it was last asked that a person should hear of, a line each."""
        return ()

    def at(self, epoch: float, epochs: float) -> None:
        """Tell every objective, every teacher and whatever else asks where training stands, for what follows a schedule."""
        if self._heard is None or self._heard[0] != int(epoch):  # a walk through a deep model in every step would be felt
            self._heard = int(epoch), [module for module in self.modules() if isinstance(module, Clocked)]
        clock = Clock(epoch, epochs)
        for module in self._heard[1]:
            module.clock = clock


class Course(ABC):
    """A scheme over time: ordinary stages, one after another, in the place of the one that names it."""

    @abstractmethod
    def expand(self, name: str, stage: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the stages that take the place of stage `name`, in order, as a recipe writes them; the last one bears its name.

        `stage` is the stage in full, its scheme left out; `earlier` are the recipe's stages above it. Names of the others begin with `name` and a hyphen.
        Raises RecipeError for what cannot be meant.
        """


Way = Scheme | Course
"""What the slot `schemes` holds."""
