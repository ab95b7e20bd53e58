"""A scheme around offline lessons: it adds something to them, and who learns is theirs."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from limbeck.core.scheme import Scheme

from .offline import Offline

__all__ = ["Around"]


class Around(Scheme):
    """A scheme around `base`, whose players and optimizers it has."""

    base: Offline

    def players(self) -> dict[str, list[nn.Parameter]]:
        return self.base.players()

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return self.base.optimizers()
