"""Adult: whether a person earns more than 50,000 dollars a year, from the census of 1994.

Kohavi & Becker 1996, UCI Machine Learning Repository: adult.data and adult.test, 14 attributes without a line of names, `?` for what is missing.
"""

from pathlib import Path

import numpy as np

from limbeck.core.errors import DataError

from ._table_csv import Cells, read_cells

__all__ = ["FILES", "TARGET", "read_adult"]

FILES = ("adult.data", "adult.test")
TARGET = "income"
_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race", "sex", "capital-gain", "capital-loss",
    "hours-per-week", "native-country", TARGET,
)  # fmt: skip


def read_adult(path: Path) -> Cells:
    """Return the columns of one of the two files; the full stop behind the labels of the second is removed.

    Raises:
        DataError: a file that is not Adult's.
    """
    cells = read_cells(path, _COLUMNS)
    cells[TARGET] = np.char.rstrip(cells[TARGET], ".")
    if strange := sorted(set(cells[TARGET].tolist()) - {"<=50K", ">50K"}):
        raise DataError(f"{path} has the label {strange[0]!r}, and Adult's are <=50K and >50K: is it the file of that name from UCI?")
    return cells
