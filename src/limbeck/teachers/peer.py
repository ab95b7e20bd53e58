"""Another player of the same scheme, as it is now."""

import torch
from torch import nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.tap import check_paths
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher


class Peer(Teacher):
    """Another player of the same scheme, as it is now: its answers, cut off from its graph.

    It is asked in the mode in which it is: one that learns answers with its dropout and with the batch's own statistics, as in its own step. Its running
    statistics stay, since they count a batch once, in its own step; no gradient comes to it. It is no submodule here: the scheme holds every player.
    Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384, algorithm 1.

    A scheme makes it of one of its own players, as `schemes.mutual` does; a recipe names the scheme.

    Raises:
        RecipeError: no player.
    """

    def __init__(self, player: nn.Module | None = None) -> None:
        super().__init__()
        if player is None:
            raise RecipeError(
                "a peer is another player of a scheme, and a recipe has none to name here: take scheme: {kind: mutual, peers: 1} in a stage of kind train"
            )
        self._player = (player,)
        self._reads = Reads()
        self._task: Task | None = None

    @property
    def player(self) -> nn.Module:
        return self._player[0]

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises RecipeError for a layer that the player has not, and MismatchError where an objective would build on one of its layers."""
        if reads.modules:
            raise MismatchError(
                f"an objective takes over the teacher's layer {sorted(reads.modules)[0]!r}, and a peer's layers move while it learns: "
                "take an objective of what the peer says or gives, or a frozen teacher"
            )
        check_paths(self.player, reads.features, "peer")
        self._reads, self._task = reads, task

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        assert self._task is not None, "a teacher is prepared before it is asked"
        before = [(buffer, buffer.clone()) for buffer in self.player.buffers()]
        try:
            return ask(self.player, batch, self._reads, self._task, side="peer")
        finally:
            for buffer, value in before:
                buffer.copy_(value)

    def after_step(self, student: nn.Module) -> None:
        """A peer moves by its own steps."""
