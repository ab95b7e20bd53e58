"""Images laid out on one sheet.

Shapes: M images, C channels, H rows, W columns, K classes.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from limbeck.core.errors import ArtifactError

__all__ = ["as_pixels", "png", "read", "sheet"]

_ROWS, _COLUMNS, _GAP = 10, 16, 2
"""Classes and images of each that a sheet shows at most, and the pixels between two."""


def read(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the images `[M, C, H, W]` and the teacher's logits `[M, K]` of a file.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        found = load_file(file)
        images, logits = found["input"], found["logits"]
    except (SafetensorError, KeyError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}): it is damaged; run the recipe again") from None
    if images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits) or not len(images):
        raise ArtifactError(f"{file} holds images {list(images.shape)} and answers {list(logits.shape)}: it is damaged; run the recipe again")
    return images, logits


def as_pixels(images: npt.NDArray[Any], preprocess: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Undo the preprocessing: `[M, C, H, W]` to uint8; without one, from the least value to the largest."""
    values = images.astype(np.float32)
    if "mean" in preprocess:
        mean, std = (np.asarray(preprocess[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
        values = values * std + mean
    else:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    return (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)


def sheet(images: npt.NDArray[np.uint8], classes: npt.NDArray[Any], names: list[str]) -> tuple[npt.NDArray[np.uint8], str]:
    """Lay images `[M, C, H, W]` out, a row for each class that the teacher finds in them, the first of each; return `[height, width, C]` and what it shows.

    >>> pixels, told = sheet(np.zeros((3, 1, 4, 4), np.uint8), np.array([1, 1, 0]), ["cat", "dog"])
    >>> pixels.shape, told
    ((10, 10, 1), '3 images, a row for each class as the teacher sees them: cat (1), dog (2)')
    """
    present = [int(one) for one in np.unique(classes)]
    rows = [np.flatnonzero(classes == one) for one in present[:_ROWS]]
    columns = min(_COLUMNS, max(len(row) for row in rows))
    channels, height, width = images.shape[1:]
    page = np.full((len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 128, np.uint8)
    for y, row in enumerate(rows):
        for x, at in enumerate(row[:columns]):
            top, left = y * (height + _GAP), x * (width + _GAP)
            page[top : top + height, left : left + width] = images[at].transpose(1, 2, 0)
    said = ", ".join(f"{names[one] if one < len(names) else one} ({len(row)})" for one, row in zip(present, rows, strict=False))
    more = f", and {len(present) - len(rows)} classes more" if len(present) > len(rows) else ""
    return page, f"{len(images)} images, a row for each class as the teacher sees them: {said}{more}"


def png(pixels: npt.NDArray[np.uint8]) -> str:
    """Return pixels `[height, width, C]` as the address of a PNG that is in the address itself."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
