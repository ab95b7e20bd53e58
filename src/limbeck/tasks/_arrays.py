"""A data set as it was read: whole, checked, and not yet changed.

Shapes: M examples (training rows first, then the test split's own), C channels, H rows, W columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

__all__ = ["Arrays", "as_nchw", "assemble", "check_finite"]


@dataclass(frozen=True)
class Arrays:
    """Images `[M, C, H, W]` (uint8 or float32), labels `[M]` (int64), and class names.

    `tests`: how many of the rows, the last ones, are a test split; `scale`: the raw value that means 1.0.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    tests: int
    names: tuple[str, ...]
    scale: float


def check_finite(images: npt.NDArray[Any], where: str) -> None:
    """Refuse NaN and infinity, naming the first example that holds one."""
    if images.dtype.kind != "f":
        return
    for start in range(0, len(images), 1024):  # in pieces: the mask of a whole data set would be as large as an image set in bytes
        bad = ~np.isfinite(images[start : start + 1024]).reshape(min(1024, len(images) - start), -1).all(1)
        if bad.any():
            raise DataError(f"{where}: image {start + int(bad.argmax())} holds a value that is not finite (NaN or infinity): mend or drop it")


def as_nchw(images: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Return `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` as `[N, C, H, W]`; C is 1 or 3, and which axis it is must be plain."""
    shape = "x".join(str(size) for size in images.shape)
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"{where} holds {images.dtype}; images are uint8 (0..255) or floats")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first != last:
            return images if first else images.transpose(0, 3, 1, 2)
    raise DataError(f"{where} has shape {shape}; images are N,H,W or N,C,H,W or N,H,W,C, with one channel or three, and no other axis of that size")


def _labels(labels: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"the labels of {where} are {labels.dtype} of shape {list(labels.shape)}; give whole numbers of shape [N]")
    return labels.astype(np.int64)


def assemble(
    where: str,
    train: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    test: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
    *,
    names: tuple[str, ...] | None = None,
    scale: float | None = None,
) -> Arrays:
    """Check (images `[N, C, H, W]`, labels `[N]`) of both splits and put them one behind the other.

    Without `names` the classes are what the training labels count, 0 up to the largest, each with an example.
    Without `scale` it is 255 for uint8 and 1 for floats.

    Raises:
        DataError: an empty split, counts or shapes that do not match, a value that is not finite, a label out of range, a single class.
    """
    parts = [("training", *train)] + ([("test", *test)] if test is not None else [])
    checked: list[npt.NDArray[np.int64]] = []
    for split, images, labels in parts:
        if not len(images):
            raise DataError(f"the {split} split of {where} is empty")
        if len(images) != len(labels):
            raise DataError(
                f"the {split} split of {where} has {len(images)} images and {len(labels)} labels: the file is damaged or the two do not belong together"
            )
        if images.shape[1:] != train[0].shape[1:] or images.dtype != train[0].dtype:
            raise DataError(
                f"the {split} images of {where} are {images.dtype}{list(images.shape[1:])}, the training images {train[0].dtype}{list(train[0].shape[1:])}"
            )
        if not all(images.shape):
            raise DataError(f"the {split} images of {where} are empty: shape {list(images.shape)}")
        check_finite(images, f"the {split} split of {where}")
        checked.append(_labels(labels, f"the {split} split of {where}"))
    if names is None:
        missing = sorted(set(range(max(int(checked[0].max()) + 1, 1))) - set(checked[0].tolist()))
        if missing:
            raise DataError(f"no training example of {where} has label {missing[0]}: number the classes from 0 without a gap, or store their class_names")
        names = tuple(str(label) for label in range(int(checked[0].max()) + 1))
    if len(names) < 2:
        raise DataError(f"{where} has one class only ({', '.join(names)}): a classifier needs two or more")
    for (split, _, _), labels in zip(parts, checked, strict=True):
        bad = (labels < 0) | (labels >= len(names))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"label {labels[row]} of example {row} in the {split} split of {where} is out of range: its {len(names)} classes are 0..{len(names) - 1}"
            )
    images = train[0] if test is None else np.concatenate([train[0], test[0]])
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            images = images.astype(np.float32, copy=False)
        check_finite(images, f"{where}, as float32")
    raw = scale if scale is not None else (255.0 if images.dtype == np.uint8 else 1.0)
    return Arrays(np.ascontiguousarray(images), np.concatenate(checked), 0 if test is None else len(checked[1]), names, raw)
