"""From cells of text to what a model sees: numbers standardised, categories one-hot, what is missing marked.

Shapes: M rows, F features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError

from ._table_csv import Cells

__all__ = ["MISSING", "described", "encoded", "numbers"]

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "None")
"""Cells that say that nothing is known."""

_TAIL = (0.001, 0.003, 0.01, 0.02)
_LEVELS = (0.0, *_TAIL, *(step / 32 for step in range(1, 32)), *(1 - level for level in reversed(_TAIL)), 1.0)
"""Of which shares of a column of numbers the statistics say what they are below: evenly, and closer at both ends."""


def numbers(cells: npt.NDArray[np.str_], missing: npt.NDArray[np.bool_], name: str) -> npt.NDArray[np.float64]:
    """Return the numbers that cells `[M]` hold, NaN where they are missing.

    Raises:
        DataError: a cell that is no finite number, with its row.
    """
    found = np.full(len(cells), np.nan)
    try:
        found[~missing] = cells[~missing].astype(np.float64)
    except ValueError:
        for row in np.flatnonzero(~missing):
            try:
                float(cells[row])
            except ValueError:
                raise DataError(
                    f"row {row + 1} of column {name!r} holds {str(cells[row])!r}, which is no number: mend it, or list {name!r} in nominal"
                ) from None
        raise
    if not (finite := np.isfinite(found) | missing).all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"row {row + 1} of column {name!r} holds {str(cells[row])!r}, which is not finite: mend it, or leave the cell empty")
    return found


def described(
    cells: Cells, rows: npt.NDArray[np.int64], tokens: Sequence[str], *, nominal: Sequence[str], numeric: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """Return each column as `Facts.preprocess` has it, from the training rows `rows` alone, JSON-able.

    A column is one of numbers where every cell that is not missing is one, unless it is listed in `nominal`. Its features are `(x - mean) / std`, 0 where it
    is missing, and, where it is missing in some training row, 1 for missing. A nominal column has a feature for each value, and one for missing where it is so.
    Columns of numbers come first.
    `start` is the first of a column's features, `width` how many they are; `quantiles` (pairs of a share and the number that it lies below) and `shares` are
    its marginal distribution.

    Raises:
        DataError: a column without a value, or with too many.
    """
    made: list[dict[str, Any]] = []
    for name, whole in cells.items():
        column = whole[rows]
        missing = np.isin(column, tokens)
        if missing.all():
            raise DataError(f"column {name!r} has no value in any training row: leave it out, drop: [{name}]")
        if name in numeric or (name not in nominal and _all_numbers(column[~missing])):
            found = _numeric(numbers(whole, np.isin(whole, tokens), name)[rows], missing)
        else:
            found = _nominal(column, missing, name, most)
        made.append({"name": name, **found})
    made.sort(key=lambda column: column["kind"] == "nominal")
    starts = np.cumsum([0, *(column["width"] for column in made)]).tolist()
    return [{**column, "start": start} for column, start in zip(made, starts, strict=False)]


def _all_numbers(cells: npt.NDArray[np.str_]) -> bool:
    try:
        cells.astype(np.float64)
    except ValueError:
        return False
    return True


def _numeric(values: npt.NDArray[np.float64], missing: npt.NDArray[np.bool_]) -> dict[str, Any]:
    there = values[~missing]
    quantiles = [[level, value] for level, value in zip(_LEVELS, np.quantile(there, _LEVELS).tolist(), strict=True)]
    told = {"mean": float(there.mean()), "std": float(there.std()) or 1.0, "quantiles": quantiles, "missing_share": float(missing.mean())}
    return {"kind": "numeric", **told, "missing": bool(missing.any()), "width": 1 + bool(missing.any())}


def _nominal(cells: npt.NDArray[np.str_], missing: npt.NDArray[np.bool_], name: str, most: int) -> dict[str, Any]:
    values, counts = np.unique(cells[~missing], return_counts=True)
    if len(values) > most:
        raise DataError(
            f"column {name!r} has {len(values)} different values, more than the {most} of `categories`: leave it out, drop: [{name}], or raise categories"
        )
    told = {"values": values.tolist(), "shares": (counts / len(cells)).tolist(), "missing_share": float(missing.mean())}
    return {"kind": "nominal", **told, "missing": bool(missing.any()), "width": len(values) + bool(missing.any())}


def encoded(cells: Mapping[str, npt.NDArray[np.str_]], preprocess: Mapping[str, Any], where: str) -> Tensor:
    """Return rows as a model sees them, `[M, F]` float32; a category that no training row had is a block of zeros, and so is what was never missing there.

    Raises:
        MismatchError: a column that is not there.
        DataError: a cell that is no number in a column of numbers.
    """
    columns, tokens = preprocess["columns"], preprocess["missing"]
    if absent := [column["name"] for column in columns if column["name"] not in cells]:
        raise MismatchError(f"{where} has no column {absent[0]!r}; it has {', '.join(cells)}: give every column of the training data")
    rows = len(next(iter(cells.values())))
    made = np.zeros((rows, sum(column["width"] for column in columns)), dtype=np.float32)
    for column in columns:
        name, start = column["name"], column["start"]
        held = cells[name]
        missing = np.isin(held, tokens)
        if column["kind"] == "numeric":
            made[:, start] = np.where(missing, 0.0, (numbers(held, missing, name) - column["mean"]) / column["std"])
        else:
            values = np.array(column["values"])
            place = np.searchsorted(values, held).clip(max=len(values) - 1)
            known = (values[place] == held) & ~missing
            made[np.flatnonzero(known), start + place[known]] = 1.0
        if column["missing"]:
            made[:, start + column["width"] - 1] = missing
    return torch.from_numpy(made)
