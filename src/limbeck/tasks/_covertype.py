"""Covertype: which of seven trees covers a cell of 30 by 30 metres, from its height, slope, shade, soil and distances.

Blackard & Dean 1999, Computers and Electronics in Agriculture 24(3): covtype.data of UCI, without names, or train.csv of Kaggle's "Forest Cover Type
Prediction", with names and an Id. Four areas of wilderness and forty types of soil come one-hot and are read as the two nominal attributes that they are.
"""

from pathlib import Path

import numpy as np

from limbeck.core.errors import DataError

from ._table_csv import Cells, read_cells

__all__ = ["FILES", "TARGET", "read_covertype"]

FILES = ("train.csv.gz", "train.csv", "covtype.data.gz", "covtype.data")
TARGET = "Cover_Type"
_NUMERIC = (
    "Elevation", "Aspect", "Slope", "Horizontal_Distance_To_Hydrology", "Vertical_Distance_To_Hydrology", "Horizontal_Distance_To_Roadways", "Hillshade_9am",
    "Hillshade_Noon", "Hillshade_3pm", "Horizontal_Distance_To_Fire_Points",
)  # fmt: skip
_ONE_HOT = {"Wilderness_Area": 4, "Soil_Type": 40}


def read_covertype(path: Path) -> Cells:
    """Return the 10 numbers, the 2 nominal attributes and the label.

    Raises:
        DataError: a file that is not Covertype's, or a row of two soils.
    """
    groups = {group: [f"{group}{number}" for number in range(1, count + 1)] for group, count in _ONE_HOT.items()}
    names = [*_NUMERIC, *(name for group in groups.values() for name in group), TARGET]
    cells = read_cells(path, names if path.name.startswith("covtype") else None)
    if absent := [name for name in names if name not in cells]:
        raise DataError(f"{path} has no column {absent[0]!r}: it must be train.csv of Kaggle, or covtype.data of UCI")
    made = {name: cells[name] for name in _NUMERIC}
    for group, members in groups.items():
        hot = np.stack([cells[name] for name in members], axis=1) == "1"
        if (wrong := hot.sum(axis=1) != 1).any():
            raise DataError(f"row {int(np.flatnonzero(wrong)[0]) + 1} of {path} is of {int(hot[wrong][0].sum())} kinds of {group}, and must be of one: mend it")
        made[group] = np.array(members)[hot.argmax(axis=1)]
    return {**made, TARGET: cells[TARGET]}
