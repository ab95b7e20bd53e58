"""What a run tells whoever watches it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["EpochDone", "Event", "Listener", "Note", "Progress", "StageDone", "StageStarted", "silent"]


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; `steps` is how many it will take, 0 where that is not known."""

    stage: str
    kind: str
    steps: int = 0


@dataclass(frozen=True)
class Progress:
    """Step `step` of `steps` of a stage is done, with the metrics that matter just now."""

    stage: str
    step: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done and was evaluated."""

    stage: str
    epoch: int
    epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Note:
    """Something a person should know; `loud` for what changes how figures may be read."""

    text: str
    stage: str = ""
    loud: bool = False


@dataclass(frozen=True)
class StageDone:
    """A stage is done, or was found done already (`reused`)."""

    stage: str
    kind: str
    reused: bool
    seconds: float
    metrics: Mapping[str, float]


Event = StageStarted | Progress | EpochDone | Note | StageDone
Listener = Callable[[Event], None]


def silent(_event: Event) -> None:
    """Listen to nothing."""
