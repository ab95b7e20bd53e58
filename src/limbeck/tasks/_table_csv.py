"""Files of rows with separators: comma, semicolon, tab; plain or gzipped, with a line of names or without."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

__all__ = ["Cells", "read_cells"]

Cells = dict[str, npt.NDArray[np.str_]]
"""Column -> the text of its cells `[M]`, blanks around them removed."""

_SEPARATORS = ",;\t"


def read_cells(path: Path, columns: Sequence[str] | None = None) -> Cells:
    """Return the columns of a file by name; `columns` names them where the first line does not.

    Lines that are empty, or begin with `|` as UCI's remarks do, are passed over.

    Raises:
        DataError: a file that is missing, damaged or empty, a line of another length, a name that is missing or stands twice.
    """
    text = _text(path)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("|")]
    if not lines:
        raise DataError(f"{path} is empty: it must have a row for each example")
    separator = max(_SEPARATORS, key=lines[0][1].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader((line for _, line in lines), delimiter=separator, skipinitialspace=True, strict=True)]
    except csv.Error as error:
        raise DataError(f"{path} is no table of cells with {separator!r} between them ({error}): look for a quotation mark that is not closed") from None
    if len(rows) != len(lines):
        raise DataError(f"{path} has a quoted cell that spans lines: put it on one line")
    names = list(columns) if columns is not None else rows[0]
    body = rows if columns is not None and rows[0] != names else rows[1:]
    _check_names(names, path, named=columns is not None)
    for (number, _), row in zip(lines[len(rows) - len(body) :], body, strict=True):
        if len(row) != len(names):
            raise DataError(f"line {number} of {path} has {len(row)} cells, and there are {len(names)} columns: mend or drop it")
    if not body:
        raise DataError(f"{path} has names of columns and no row: it must have a row for each example")
    return {name: np.array([row[index] for row in body], dtype=np.str_) for index, name in enumerate(names)}


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return io.StringIO(data.decode("utf-8-sig")).read()
    except OSError as error:  # gzip's own is one
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): write it again as UTF-8") from None


def _check_names(names: list[str], path: Path, *, named: bool) -> None:
    where = "columns" if named else f"the first line of {path}"
    for index, name in enumerate(names):
        if not name:
            raise DataError(f"{where} has no name for column {index + 1}: name it")
        if name in names[:index]:
            raise DataError(f"{where} names {name!r} twice: each column needs a name of its own")
        if not named and _number(name):
            raise DataError(f"the first line of {path} holds {name!r}, which is a value and no name: name the columns, columns: [...]")


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
