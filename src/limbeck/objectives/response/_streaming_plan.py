"""How much of the logits is taken at a time: by size, by device, and within a budget.

Shapes: N rows, V entries of the vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from limbeck.core.errors import MismatchError

__all__ = ["Plan", "Way", "planned"]

Way = Literal["dense", "tokens", "vocabulary"]
_TEMPORARIES = 10
"""Arrays of a tile's size that are alive at once, at the most."""
_CHUNK = 1 << 23
"""Logits of one side up to which more rows at a time are worth their memory."""
_ROWS, _ROWS_ELSEWHERE = {"cpu": 256}, 1024
"""Rows at a time at which products run at full speed, and above which little is gained; on a GPU this was not measured."""
_LEAST = 24
"""Rows at a time below which adding to a head's gradient costs more than multiplying out the logits again."""
_WIDTH, _NARROW = 8192, 32
"""Entries of the vocabulary at a time: at the most, and those below which products starve."""
_TILE, _TILE_ELSEWHERE = {"cpu": 1 << 17}, 1 << 22
"""Logits at hand at once: on a CPU what its caches hold, for each thread; elsewhere what is worth starting an operation for."""


@dataclass(frozen=True)
class Plan:
    """How it is computed: `rows` at a time, `columns` of the vocabulary at a time, `tile` logits at hand; in at most `bytes` of buffers.

    Beyond these there are the gradients, and a head that must be cast is, a part at a time.
    """

    way: Way
    rows: int
    columns: int
    tile: int
    bytes: int

    def __str__(self) -> str:
        told = {"dense": "all logits at once", "tokens": f"{self.rows} rows at a time", "vocabulary": f"{self.columns} of the vocabulary at a time"}
        return f"{told[self.way]}, {self.bytes / 1e6:,.3g} MB of buffers"


def planned(rows: int, columns: int, *, budget: int | None = None, way: Way | None = None, device: str = "cpu", size: int = 4) -> Plan:
    """Return how N = `rows` by V = `columns` logits of `size` bytes are computed within `budget` bytes of buffers, as fast as can be where it is None.

    Raises:
        MismatchError: a budget in which not a row or a column of the vocabulary fits.

    >>> str(planned(8, 100)), planned(8192, 50257).way
    ('all logits at once, 0.0384 MB of buffers', 'tokens')
    """
    rows, columns = max(rows, 1), max(columns, 1)
    room = None if budget is None else budget // size
    if torch.compiler.is_compiling():
        at_hand = rows * columns  # it parts them itself
    else:
        at_hand = _TILE[device] * torch.get_num_threads() if device in _TILE else _TILE_ELSEWHERE
    if room is not None:
        at_hand = min(at_hand, room // (2 * _TEMPORARIES))

    def laid(way: Way, some: int, width: int) -> Plan:
        tile = min(max(1, at_hand // width), some) * width
        return Plan(way, some, width, tile, size * (2 * some * width + _TEMPORARIES * tile))

    whole = laid("dense", rows, columns)
    fast = max(_ROWS.get(device, _ROWS_ELSEWHERE), _CHUNK // columns)
    fits = min(fast, rows)
    width = min(_WIDTH, columns)
    if room is not None:
        tile = max(1, at_hand // columns) * columns
        fits = min(fits, (room - _TEMPORARIES * tile) // (2 * columns))
        width = min(width, (room - _TEMPORARIES * at_hand) // (2 * rows), room // (2 * rows + _TEMPORARIES))
    if way is None:
        if rows <= fast and (budget is None or whole.bytes <= budget):
            way = "dense"
        else:
            way = "vocabulary" if fits < min(_LEAST, rows) and (width >= _NARROW or fits < 1) else "tokens"
    if way == "dense":
        if budget is not None and whole.bytes > budget:
            raise MismatchError(f"all logits at once take {whole.bytes:,} bytes of buffers, and the budget is {budget:,}: allow more, or leave out way: dense")
        return whole
    if (fits if way == "tokens" else width) < 1:
        least = laid(way, *((1, columns) if way == "tokens" else (rows, 1))).bytes
        raise MismatchError(f"{rows:,} rows by {columns:,} logits take {least:,} bytes of buffers or more, and the budget is {budget or 0:,}: allow more")
    return laid("tokens", fits, columns) if way == "tokens" else laid("vocabulary", rows, width)
