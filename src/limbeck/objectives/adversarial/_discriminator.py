"""Small networks that score an answer or a feature: high where they take it for the teacher's.

None has batch statistics: each score depends on its own example, as the gradient penalty asks (Gulrajani et al. 2017, sec. 4).
Shapes: N examples, D channels, T places of a sequence, H x W places of a map.
"""

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.objectives._precision import place

__all__ = ["Discriminator", "discriminator"]

_SLOPE = 0.2


class Discriminator(nn.Module):
    """Score what it is given, in the precision of its weights whatever the surroundings compute in: the axes after the first `kept` become one score."""

    def __init__(self, layers: nn.Sequential, kept: int) -> None:
        super().__init__()
        self.layers = layers
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., D]` or `[N, D, H, W]` to one score for each of its first `kept` axes' items."""
        with torch.autocast(x.device.type, enabled=False):
            scores = self.layers(x.to(next(self.parameters()).dtype))
            return scores.flatten(self.kept).mean(-1)


def discriminator(example: Tensor, hidden: int, *, kept: int = 1) -> Discriminator:
    """Make one for features like `example`: three layers, the inner ones `hidden` wide, in float32 at least and on its device.

    Maps `[N, D, H, W]` are scored by two 3x3 convolutions of stride 2 and a 1x1 one, averaged over places; vectors `[..., D]` by a perceptron, and
    sequences `[N, T, D]` by it at every place.

    Raises:
        MismatchError: neither vectors, sequences nor maps.
    """
    if example.ndim < 2 or (kept == 1 and example.ndim > 4):
        raise MismatchError(f"a discriminator reads vectors [N, D], sequences [N, T, D] or maps [N, D, H, W], not {list(example.shape)}: name another layer")
    where = place(example)
    if kept == 1 and example.ndim == 4:
        first = nn.Conv2d(example.shape[1], hidden, 3, 2, 1, **where)
        layers = [first, nn.LeakyReLU(_SLOPE), nn.Conv2d(hidden, hidden, 3, 2, 1, **where), nn.LeakyReLU(_SLOPE), nn.Conv2d(hidden, 1, 1, **where)]
    else:
        first = nn.Linear(example.shape[-1], hidden, **where)
        layers = [first, nn.LeakyReLU(_SLOPE), nn.Linear(hidden, hidden, **where), nn.LeakyReLU(_SLOPE), nn.Linear(hidden, 1, **where)]
    return Discriminator(nn.Sequential(*layers), kept)
