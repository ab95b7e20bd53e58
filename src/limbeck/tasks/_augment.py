"""Augmentation of whole batches; each example's draw is a pure function of (seed, view, example id).

Shapes: N examples, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from limbeck.core.draw import below, bits, key
from limbeck.core.errors import RecipeError

__all__ = ["Augmentation", "Crop", "Flip", "Shift", "Slide", "augmented", "check_reach", "shifted"]


class _Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shift(_Kind):
    """Move the image by up to `pixels` whole pixels, rows and columns each uniformly; what comes in is the raw value zero."""

    kind: Literal["shift"] = "shift"
    pixels: int = Field(default=2, ge=1)


class Crop(_Kind):
    """Pad by `padding` pixels of the raw value zero on every side and cut a random window of the image's own size: a shift by up to `padding`."""

    kind: Literal["crop"] = "crop"
    padding: int = Field(default=4, ge=1)


class Flip(_Kind):
    """Mirror left and right, for half of the examples."""

    kind: Literal["flip"] = "flip"


class Slide(_Kind):
    """Move along the last axis, a spectrogram's time, by up to `frames` whole steps; what comes in is the quietest value of the data."""

    kind: Literal["slide"] = "slide"
    frames: int = Field(default=4, ge=1)


Augmentation = Annotated[Shift | Crop | Flip, Field(discriminator="kind")]


def _reach(step: Shift | Crop) -> int:
    return step.pixels if isinstance(step, Shift) else step.padding


def check_reach(steps: Sequence[Shift | Crop | Flip], height: int, width: int) -> None:
    """Refuse a shift that can move the whole image out of sight."""
    for step in steps:
        if not isinstance(step, Flip) and _reach(step) >= min(height, width):
            raise RecipeError(f"augment: {step.kind} by {_reach(step)} pixels moves images of {height}x{width} out of sight; stay below {min(height, width)}")


def shifted(images: Tensor, rows: Tensor, columns: Tensor, reach: int, fill: Tensor) -> Tensor:
    """Return `out[n, c, i, j] = images[n, c, i - rows[n], j - columns[n]]`, and `fill[c]` where that lies outside.

    `images [N, C, H, W]`, `rows [N]` and `columns [N]` int64 within `-reach..reach`, `fill [C]`.
    """
    count, channels, height, width = images.shape
    tall, wide = height + 2 * reach, width + 2 * reach
    padded = fill.view(1, channels, 1, 1).expand(count, channels, tall, wide).contiguous()
    padded[:, :, reach : reach + height, reach : reach + width] = images
    # Every window of the padded batch as one overlapping view, indexed by where the window starts: one copy, row by row.
    span = ((channels - 1) * tall + height - 1) * wide + width - 1
    windows = padded.as_strided((padded.numel() - span, channels, height, width), (1, tall * wide, wide, 1))
    starts = torch.arange(count, device=images.device) * (channels * tall * wide)
    return windows.index_select(0, starts + (reach - rows) * wide + (reach - columns))


def augmented(images: Tensor, ids: Tensor, steps: Sequence[Shift | Crop | Flip | Slide], *, seed: int, view: int, fill: Tensor) -> Tensor:
    """Return view number `view` of `images [N, C, H, W]`, whose examples are `ids [N]`; `fill [C]` is what the raw value zero became.

    Step `s` of an example draws from the hash of (seed, view, s, id): it depends neither on order nor on rank nor on who else is in the batch.
    """
    for place, step in enumerate(steps):
        hashed = bits(ids, key(seed, view, place))
        if isinstance(step, Flip):
            images = torch.where((hashed < 0).view(-1, 1, 1, 1), images.flip(3), images)
        elif isinstance(step, Slide):
            columns = below(hashed, 2 * step.frames + 1, 0) - step.frames
            images = shifted(images, torch.zeros_like(columns), columns, step.frames, fill)
        else:
            reach = _reach(step)
            images = shifted(images, below(hashed, 2 * reach + 1, 1) - reach, below(hashed, 2 * reach + 1, 0) - reach, reach, fill)
    return images
