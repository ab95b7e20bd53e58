"""The edges of images: how fast they change, at each pixel.

Shapes: M images, C channels, H rows, W columns.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["edges"]

_CHUNK = 4096


def edges(images: npt.NDArray[np.generic], scale: float) -> npt.NDArray[np.generic]:
    """Return the magnitude of the Sobel gradient of `images [M, C, H, W]`, in their own type and units, cut off at `scale`; a border pixel goes on outside.

    A straight edge from 0 to `scale` has the magnitude `scale`: sqrt(gx^2 + gy^2) / 4, with gx the difference of the columns beside, weighed 1, 2, 1.
    """
    found = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        x = np.pad(images[start : start + _CHUNK].astype(np.float32), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        smooth_rows = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
        smooth_columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
        magnitude = np.hypot(smooth_rows[..., 2:] - smooth_rows[..., :-2], smooth_columns[:, :, 2:] - smooth_columns[:, :, :-2]) / 4
        clipped = np.minimum(magnitude, scale)
        found[start : start + _CHUNK] = np.rint(clipped) if images.dtype.kind in "iu" else clipped
    return found
