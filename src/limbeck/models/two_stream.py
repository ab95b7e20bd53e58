"""Two networks side by side that look at one input, and answer together.

Hoffman, Gupta and Darrell, "Learning with Side Information through Modality Hallucination", CVPR 2016: the second stream is trained to have the features
that a network on a second modality has, and stands for it where that modality is not there.
"""

from typing import Any

from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.errors import RecipeError

__all__ = ["TwoStream"]


class TwoStream(nn.Module):
    """Two networks of one kind, `own` and `hallucination`, that look at the same input; the answer is the mean of their logits.

    Their layers are `own.layer3`, `hallucination.layer3` and so on: a feature objective with `layers: {hallucination.layer3: layer3}` and a teacher on the
    second modality makes the second stream a hallucination of it (the paper matches the middle of the network after a sigmoid, squared).

    Args:
        of: the model of each stream, such as {kind: cnn, width: 8}; a cnn of the usual width where it is left out.

    Raises:
        RecipeError: a model that cannot be a stream.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, of: dict[str, Any] | None = None) -> None:
        super().__init__()
        options = {"kind": "cnn"} if of is None else dict(of)
        kind = options.pop("kind", None)
        if not isinstance(kind, str):
            raise RecipeError("option 'of' of models.two_stream is the model of each stream: {kind: cnn, width: 8}")
        self.own: nn.Module = lookup.build("models", kind, options, in_shape=in_shape, classes=classes)
        self.hallucination: nn.Module = lookup.build("models", kind, options, in_shape=in_shape, classes=classes)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, ...]` to logits `[N, C]`, the mean of both streams'."""
        return (self.own(x) + self.hallucination(x)) / 2
