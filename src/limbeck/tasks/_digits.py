"""The digits that scikit-learn packs: 1,797 images of 8x8, whole numbers 0..16; read without importing scikit-learn.

Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998, its test part.
"""

import importlib.util
import io
from pathlib import Path

import numpy as np

from limbeck.core.errors import DataError

from ._arrays import Arrays, assemble
from ._idx import read_bytes

__all__ = ["digits_file", "read_digits"]


def digits_file() -> Path:
    """Return the file inside the installed package."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data 'digits' comes with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if not path.is_file():
        raise DataError(f"this scikit-learn has no {path}: install version 1.9")
    return path


def read_digits(path: Path) -> Arrays:
    """Read the digits: rows of 64 pixels and a label."""
    rows = np.loadtxt(io.BytesIO(read_bytes(path)), delimiter=",", dtype=np.float32)
    pixels, labels = rows[:, :64].astype(np.uint8), rows[:, 64].astype(np.int64)
    return assemble(str(path), (pixels.reshape(-1, 1, 8, 8), labels), names=tuple("0123456789"), scale=16.0)
