"""A classifier for a layer on the way, and what must be known of the layers to build it. Shapes: N examples, D channels, T places, H x W places."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.tap import Survey, Tap

__all__ = ["ExitHead", "Seen", "exit_head", "seen"]


@dataclass(frozen=True)
class Seen:
    """What a dry run showed: the layers in the order in which they ran; the shape each gives; the last feature's layer and width; the last map's side."""

    order: list[str]
    shapes: dict[str, tuple[int, ...]]
    deepest: str
    width: int
    side: int


def seen(model: nn.Module, at: Sequence[str], in_shape: Sequence[int], classes: int) -> Seen:
    """Run a model once on two examples of zeros, in evaluation mode, each layer's mode and the random state as they were.

    The last feature is the last vector `[N, D]` of a model's layer before its answer.

    Raises:
        RecipeError: a layer that the model has not.
        MismatchError: a layer that gives no tensor, or a model that does not run on such examples.
    """
    modes = {module: module.training for module in model.modules()}
    like = next((one for one in model.parameters() if one.is_floating_point()), torch.zeros(()))
    x = torch.zeros(2, *in_shape, device=like.device, dtype=like.dtype)
    model.eval()
    try:
        with torch.no_grad(), Tap(model, at) as tap, Survey(model) as survey:
            model(x)
    except (RuntimeError, TypeError, IndexError) as error:
        raise MismatchError(f"{type(model).__name__} does not run on an example of shape {tuple(in_shape)}: {' '.join(str(error).split())[:200]}") from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    shapes = survey.shapes
    vectors = [path for path, shape in shapes.items() if len(shape) == 2 and shape[1] != classes]
    maps = [shape for shape in shapes.values() if len(shape) > 2]
    last = maps[-1] if maps else (2, classes)
    width = shapes[vectors[-1]][1] if vectors else last[1 if len(last) == 4 else -1]
    gave = {path: tuple(tap.features[path].shape) for path in at}
    order = sorted(at, key=list(shapes).index)
    return Seen(
        order, gave, vectors[-1] if vectors else "", width, next((min(shape[2:]) for shape in reversed(maps) if len(shape) == 4 and min(shape[2:]) > 1), 1)
    )


class ExitHead(nn.Module):
    """A bottleneck, a pooling to vectors `[N, width]`, and a linear head that gives logits `[N, C]`."""

    def __init__(self, bottleneck: nn.Module, pool: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.pool = pool
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.bottleneck(x)))


class _Mean(nn.Module):
    """The mean over the places of a sequence: `[N, T, D]` to `[N, D]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def exit_head(path: str, found: Seen, width: int, classes: int) -> ExitHead:
    """Return the classifier for what a layer gives: a map `[N, D, H, W]`, a sequence `[N, T, D]` or a vector `[N, D]`.

    Raises:
        MismatchError: another shape.
    """
    shape = found.shapes[path]
    if len(shape) == 4:
        return ExitHead(_halved(shape[1], width, min(shape[2:]), found.side), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), width, classes)
    if len(shape) == 3:
        return ExitHead(nn.Sequential(nn.LayerNorm(shape[2]), nn.Linear(shape[2], width), nn.GELU()), _Mean(), width, classes)
    if len(shape) == 2:
        return ExitHead(nn.Sequential(nn.Linear(shape[1], width), nn.ReLU()), nn.Identity(), width, classes)
    raise MismatchError(f"the layer {path!r} gives {list(shape)}, and an exit reads maps [N, D, H, W], sequences [N, T, D] or vectors [N, D]: name another")


def _halved(channels: int, width: int, side: int, last: int) -> nn.Sequential:
    """Separable convolutions of stride 2 from a map of `side` to the size of the last one, at least one; the channels double on the way, up to `width`."""
    steps = max(1, round(math.log2(max(side / last, 1.0))))
    made: list[nn.Module] = []
    for step in range(steps):
        wider = width if step == steps - 1 else max(min(2 * channels, width), 1)
        made += [
            nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False),
            nn.Conv2d(channels, wider, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
        ]
        channels = wider
    return nn.Sequential(*made)
