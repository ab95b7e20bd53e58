"""The network's own deeper exits.

Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094.
"""

from typing import Literal

import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

__all__ = ["Exits"]


class Exits(Teacher):
    """The student's own deeper exits teach the earlier ones, in the same forward pass and without a gradient to the deeper.

    What it says of exit e is the answer of the exit that teaches e; of the deepest it says nothing. Its layers are the student's own. It teaches in the scheme
    `exits`, which asks the student for both sides at once. Zhang et al. 2019, arXiv:1905.08094, sec. 3: the deepest teaches all.

    Args:
        by: deepest, or next, the exit one deeper.

    Raises:
        MismatchError: a student with one answer alone, or an objective that pairs layers by itself or builds on a teacher's layers.

    Example:
        {kind: exits}
    """

    reads_student = True

    def __init__(self, *, by: Literal["deepest", "next"] = "deepest") -> None:
        super().__init__()
        self.by = by
        self._reads = Reads()

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises MismatchError for what a student's own exits cannot give."""
        if reads.shapes or reads.modules or reads.input_gradient:
            raise MismatchError(
                "exits teach each other by answers and by layers that are named, such as layers: {exits.exit1.pool: of.pool}: name the layers, "
                "or teach by response objectives"
            )
        self._reads = reads

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        assert student is not None, "a teacher that reads the student is asked after it"
        order = [*(name for name in student.outputs if name != "main"), "main"]
        if len(order) == 1:
            raise MismatchError("the student has one answer, 'main', and no exits: take a model such as {kind: exits, of: {kind: cnn}, at: [layer1]}")
        deeper = order[1:] if self.by == "next" else ["main"] * (len(order) - 1)
        outputs = {name: _still(student.whole(teaching)) for name, teaching in zip(order, deeper, strict=False)}
        return Knowledge(outputs, {path: student.feature(path).detach() for path in sorted(self._reads.features)}, student.mask)

    def after_step(self, student: nn.Module) -> None:
        """It is the student: there is nothing to follow."""


def _still(said: Dense) -> Dense:
    return Dense(said.logits.detach(), said.link)
