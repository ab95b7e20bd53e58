"""From raw pixels to what a model sees, the same in training and in prediction.

Shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError

from ._arrays import as_nchw, check_finite
from ._folder import SUFFIXES, read_image
from ._npz import read_array_file

__all__ = ["normalised", "prepare", "statistics"]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1)


def normalised(raw: Tensor, scale: float, mean: Tensor, std: Tensor) -> Tensor:
    """Return `(raw / scale - mean) / std` in float32: `raw [N, C, H, W]`, `mean` and `std` `[C, 1, 1]`; `raw` stays as it was."""
    return raw.to(torch.float32, copy=True).div_(scale).sub_(mean).div_(std)


def statistics(raw: Tensor, rows: Tensor, scale: float) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation over the images `rows` of `raw [M, C, H, W]`, as parts of `scale`; a constant channel's deviation is 1.

    Summed in float64, in two passes.
    """
    pieces = rows.split(1024)
    pixels = len(rows) * raw.shape[2] * raw.shape[3]
    mean = sum((raw.index_select(0, piece).double().sum((0, 2, 3)) for piece in pieces), torch.zeros(raw.shape[1], dtype=torch.float64)) / pixels
    apart = (raw.index_select(0, piece).double().sub_(mean.view(-1, 1, 1)).square_().sum((0, 2, 3)) for piece in pieces)
    std = (sum(apart, torch.zeros_like(mean)) / pixels).sqrt()
    std[std == 0] = scale
    return (mean / scale).tolist(), (std / scale).tolist()


def _in_units(images: npt.NDArray[Any], told: Mapping[str, Any], where: str) -> npt.NDArray[Any]:
    """Check an array, `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]` in the training data's own units, and return it as `[N, C, H, W]`."""
    channels, (height, width), scale = (1 if told["mode"] == "L" else 3), told["size"], told["scale"]
    if images.ndim == 4 and images.shape[1:] == (channels, height, width):
        found = images
    elif images.ndim == 4 and images.shape[1:] == (height, width, channels):
        found = images.transpose(0, 3, 1, 2)
    elif images.ndim == 3 and channels == 1 and images.shape[1:] == (height, width):
        found = images[:, None]
    else:
        raise MismatchError(
            f"{where} has shape {'x'.join(map(str, images.shape))}; the model was trained on {height}x{width} with {channels} channel(s): "
            f"give N,{channels},{height},{width} or N,{height},{width}{f',{channels}' if channels > 1 else ''}"
        )
    if not len(found):
        raise DataError(f"{where} holds no image")
    as_nchw(np.empty((1, 1, 1), images.dtype), where)  # the dtype, by the same rule as for training data
    check_finite(found, where)
    if scale != 1:
        low, high = float(found.min()), float(found.max())
        if low < 0 or high > scale:
            raise MismatchError(f"{where} holds values {low:g}..{high:g}; the model was trained on raw values 0..{scale:g}: give them in those units")
        if scale > 1 and found.dtype.kind == "f" and 0 < high <= 1:
            raise MismatchError(f"{where} holds floats up to {high:g}; the model was trained on raw values 0..{scale:g}: multiply by {scale:g}")
    return found


def prepare(inputs: "npt.NDArray[Any] | str | Path | Sequence[str | Path]", preprocess: Mapping[str, Any]) -> Tensor:
    """Return raw images as the model saw its training data: `[N, C, H, W]` float32.

    `inputs`: an array of raw images, in the units of the training data (`preprocess["scale"]` is what means 1.0); or one or more files: `.npy` and `.npz` (its
    only array, or `x`, or `x_test`) hold such arrays, an image file is one image, brought to mode and size, whose 255 means 1.0.
    `preprocess` is `Facts.preprocess`.

    Raises:
        DataError: a file that is missing, damaged or empty, a value that is not finite.
        MismatchError: a shape or a range of values that the model was not trained on.
    """
    if preprocess.get("kind") != "image":
        raise MismatchError(f"this model takes no images: its preprocessing is {preprocess.get('kind') or 'not known'}; give it tensors from Python")
    if isinstance(inputs, np.ndarray):
        batches = [(_in_units(inputs, preprocess, "the array"), float(preprocess["scale"]))]
    else:
        paths = [Path(path) for path in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
        if not paths:
            raise DataError("there is nothing to predict: give an image file, an .npy or an .npz")
        batches = [_read(path, preprocess) for path in paths]
    out = []
    for raw, scale in batches:
        tensor = torch.from_numpy(np.array(raw, dtype=np.uint8 if raw.dtype == np.uint8 else np.float32))  # a copy: the array may be read-only
        out.append(normalised(tensor, scale, _column(preprocess["mean"], tensor), _column(preprocess["std"], tensor)))
    return torch.cat(out)


def _read(path: Path, preprocess: Mapping[str, Any]) -> tuple[npt.NDArray[Any], float]:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        height, width = preprocess["size"]
        return read_image(path, preprocess["mode"], (height, width))[None], 255.0
    if suffix not in (".npy", ".npz"):
        raise DataError(f"{path} is neither an image ({', '.join(sorted(SUFFIXES))}) nor an .npy or .npz of images")
    arrays = read_array_file(path)
    chosen = next((key for key in ("x", "x_test") if key in arrays), next(iter(arrays)) if len(arrays) == 1 else None)
    if chosen is None:
        raise DataError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: name the images x, or store them alone")
    return _in_units(arrays[chosen], preprocess, f"{chosen} of {path}"), float(preprocess["scale"])
