"""The mean teacher: the student's own weights, averaged over the steps.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.
"""

import math

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._copy import Copy

__all__ = ["EMA", "follow", "kept"]


def kept(step: int, decay: float) -> float:
    """Return the share of the average that stays at step `step`, counted from 1: min(1 - 1/(step + 1), decay).

    Until that reaches `decay` the average is the plain mean of all weights so far, the first ones included.

    >>> kept(1, 0.9), kept(3, 0.9), kept(100, 0.9)
    (0.5, 0.75, 0.9)
    """
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, keep: float) -> None:
    """Move every parameter and buffer of `average` towards the student's, v = keep v + (1 - keep) w; buffers that are no real numbers are copied.

    Raises:
        MismatchError: the student has come to have other parameters or buffers than its average.
    """
    pairs = [*_pairs(dict(average.named_parameters()), dict(student.named_parameters())), *_pairs(dict(average.named_buffers()), dict(student.named_buffers()))]
    for mine, theirs in pairs:
        if mine.is_floating_point():
            mine.lerp_(theirs.to(mine.dtype), 1 - keep)
        else:
            mine.copy_(theirs)


def _pairs(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
        raise MismatchError("the student has other parameters than the average of it: make the teacher when the student is whole")
    return [(mine[name], theirs[name]) for name in mine]


class EMA(Teacher):
    """The mean teacher: an exponential moving average of the student's parameters and buffers.

    `v_t = a_t v_{t-1} + (1 - a_t) w_t` after step t, `a_t = min(1 - 1/(t + 1), decay)`, v_0 a deep copy of the student as it was handed over.
    Tarvainen and Valpola 2017, arXiv:1703.01780, sec. 2. The ramp-up is that of the authors' code. There the teacher runs in train mode, with dropout and batch
    statistics of its own; here in eval mode, with averaged statistics.

    It teaches by any objective, layers included, also where examples have no label. In a loop of one's own call `kd.after_step()` after each optimizer step.

    Args:
        decay: the share of the average that stays at every step in the end; about the last 1 / (1 - decay) steps count.

    Raises:
        RecipeError: a decay outside [0, 1).
        MismatchError: a student that cannot be copied.

    Example:
        {kind: ema, decay: 0.99}
    """

    def __init__(self, student: nn.Module, *, decay: float = 0.999) -> None:
        super().__init__()
        if not (math.isfinite(decay) and 0 <= decay < 1):
            raise RecipeError(f"decay is {decay:g}; it must be 0 or more and below 1, such as 0.99")
        self.decay = decay
        self.average = Copy(student)
        self._steps = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._steps)

    def set_extra_state(self, state: Tensor) -> None:
        self._steps = int(state)

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises RecipeError for a layer that the student has not."""
        self.average.prepare(reads, task)

    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        return self.average(batch)

    def after_step(self, student: nn.Module) -> None:
        """Take the step's weights into the average."""
        self._steps += 1
        follow(self.average.model, student, kept(self._steps, self.decay))
