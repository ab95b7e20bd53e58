"""Write tensors as an .lbk file: each in whichever form takes the fewest bytes. The format: docs/compression/lbk.md; its reader: `_decoder.py`.

A tensor is looked at as bits (-0.0 is not 0.0, and one NaN is not another), so that what is read is what was written. S symbols, n values, k distinct ones.
"""

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._decoder import ACROSS, DENSE, DTYPES, EXPANSION, MAGIC, RAW, ROWS, SPARSE, STORED, VERSION
from ._huffman import LONGEST, code_lengths, encode

__all__ = ["Coded", "container", "dense_bytes", "smallest"]

Array = NDArray[np.generic]
Whole = NDArray[np.int64]
Piece = tuple[str, bytes]
"""What bytes are counted as, and the bytes."""

_FORMS = {RAW: "raw", DENSE: "dense", SPARSE: "sparse"}
_NARROWER = {"bool": (), "bfloat16": (), "float32": ("uint8", "int8", "int16", "float16"), "float64": ("uint8", "int8", "int16", "float16", "float32")}
_WHOLE = ("uint8", "int8", "int16", "int32", "int64")
_MOST_ROWS, _FEW = 1 << 31, 1 << 16


@dataclass(frozen=True)
class Coded:
    """A tensor's bytes: its form, and the pieces by what they are counted as. `dtype` and `stored`: of the tensor, and of the numbers in the file."""

    name: str
    dtype: str
    stored: str
    form: int
    shape: tuple[int, ...]
    pieces: Sequence[Piece]

    @property
    def payload(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    @property
    def coded(self) -> bool:
        """Whether its values are in a codebook."""
        return any(kind == "codebooks" for kind, _ in self.pieces)

    @property
    def told(self) -> str:
        """Its form in words."""
        across, rows = ", columns first" if self.form & ACROSS else "", ", rows once" if self.form & ROWS else ""
        return f"{_FORMS[self.form & 3]}{across}{rows}, {self.stored}"


def number(value: int) -> bytes:
    """Return a whole number as seven bits to a byte, the lowest first, the high bit set in all bytes but the last.

    >>> number(5).hex(), number(300).hex()
    ('05', 'ac02')
    """
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _bits(array: Array) -> Array:
    return array.view(f"<u{array.dtype.itemsize}")


def _narrowest(values: Array, dtype: str) -> tuple[str, Array]:
    """Return the type of the fewest bytes that holds all of these values to the bit, and the values in it."""
    narrower = _WHOLE[: _WHOLE.index(dtype)] if dtype in _WHOLE else _NARROWER.get(dtype, ())
    for stored in sorted(narrower, key=lambda name: np.dtype(STORED[DTYPES.index(name)]).itemsize):
        kind = np.dtype(STORED[DTYPES.index(stored)])
        if kind.itemsize < values.dtype.itemsize and np.can_cast(kind, values.dtype):
            with np.errstate(all="ignore"):
                held = values.astype(kind)
            if np.array_equal(_bits(held.astype(values.dtype)), _bits(values)):
                return stored, held
    return dtype, values


def _book(values: Array, dtype: str) -> tuple[str, list[Piece], Whole, Whole] | None:
    """Return how the distinct values are stored, the pieces (counts of code lengths, codebook), the code `[n]` of each value and the codes' lengths `[k]`.

    None where there are too many for codes of 15 bits.
    """
    if len(np.unique(_bits(values)[: 4 << LONGEST])) > 1 << LONGEST:
        return None  # without sorting them all
    distinct, index, counts = np.unique(_bits(values), return_inverse=True, return_counts=True)
    if not 1 <= len(distinct) <= 1 << LONGEST:
        return None
    lengths = code_lengths(counts.astype(np.int64))
    order = np.argsort(lengths, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    stored, held = _narrowest(distinct[order].view(values.dtype), dtype)
    table = np.bincount(lengths)[1:]
    told = bytes([len(table)]) + b"".join(number(int(count)) for count in table)
    return stored, [("tables", told), ("codebooks", held.tobytes())], place[index], lengths[order]


def _dense(values: Array, dtype: str) -> tuple[str, list[Piece]] | None:
    found = _book(values, dtype)
    if found is None:
        return None
    stored, pieces, codes, lengths = found
    return stored, [*pieces, ("indices", encode(codes, lengths))]


def _gaps(valued: NDArray[np.bool_], width: int) -> Whole:
    """Return the gap symbols of a tensor: how many zeros lie before each value, 2^width - 1 of them where that is no less, and then again."""
    top = (1 << width) - 1
    at = np.flatnonzero(valued)
    zeros = np.diff(at, prepend=-1) - 1
    after = len(valued) - 1 - (int(at[-1]) if len(at) else -1)
    full = np.append(zeros // top, after // top)
    made = np.full(int(full.sum()) + len(at), top)
    made[np.cumsum(full[:-1] + 1) - 1] = zeros % top
    return made


def _gap_pieces(valued: NDArray[np.bool_]) -> list[Piece]:
    """Return the gaps' pieces in the width of symbols, 1 to 8 bits, that takes the fewest bytes."""
    best: tuple[int, int, Whole, Whole] | None = None
    for width in range(1, 9):
        symbols = _gaps(valued, width)
        counts = np.bincount(symbols).astype(np.int64)
        lengths = code_lengths(counts)
        size = len(lengths) // 2 + -(-int(counts @ lengths) // 8)
        if best is None or size < best[0]:
            best = size, width, symbols, lengths
    assert best is not None
    _, width, symbols, lengths = best
    stream = encode(symbols, lengths)
    even = np.pad(lengths, (0, len(lengths) % 2)).reshape(-1, 2)
    table = (even[:, 0] | even[:, 1] << 4).astype(np.uint8).tobytes()
    head = bytes([width]) + number(len(symbols)) + number(len(lengths)) + number(len(stream))
    return [("tables", head + table), ("gaps", stream)]


def _sparse(values: Array, dtype: str) -> tuple[str, list[Piece]]:
    valued = _bits(values) != 0
    pieces = _gap_pieces(valued)
    if not valued.any():
        return dtype, pieces
    stored, held = _narrowest(values[valued], dtype)
    found = stored, [("tables", bytes(1)), ("raw", held.tobytes())]
    if (coded := _dense(values[valued], dtype)) is not None and _size(coded[1]) < _size(found[1]):
        found = coded
    return found[0], [*pieces, *found[1]]


def _size(pieces: Iterable[Piece]) -> int:
    return sum(len(data) for _, data in pieces)


def _forms(array: Array, dtype: str, label: str) -> Iterator[tuple[int, str, list[Piece]]]:
    """Give every form of a tensor that there is: form, type in the file, pieces."""
    stored, held = _narrowest(array.ravel(), dtype)
    yield RAW, stored, [(label, held.tobytes())]
    if array.size < 2:
        return
    if (found := _dense(array.ravel(), dtype)) is not None:
        yield DENSE, *found
    if 2 * np.count_nonzero(_bits(array)) > array.size > _FEW:
        return  # gaps that save nothing
    for across in (0, ACROSS) if array.ndim > 1 else (0,):
        yield SPARSE | across, *_sparse(array.ravel(order="F" if across else "C"), dtype)


def _rows(array: Array) -> tuple[Array, list[Piece]] | None:
    """Return the rows that differ, and which of them each row is; None where all differ."""
    if array.ndim < 2 or not 1 < array.shape[0] < _MOST_ROWS or not array.size:
        return None
    flat = _bits(np.ascontiguousarray(array)).reshape(array.shape[0], -1)
    _, first, index = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(flat):
        return None
    width = max(1, (len(first) - 1).bit_length())
    bits = index.reshape(-1, 1) >> np.arange(width)[::-1] & 1
    return array[first], [("rows", number(len(first)) + np.packbits(bits.astype(bool).ravel()).tobytes())]


def smallest(name: str, array: Array, dtype: str) -> Coded:
    """Return a tensor in the form that takes the fewest bytes; of equals the first of raw, dense, sparse."""
    label = "biases" if array.ndim < 2 else "raw"
    made = [Coded(name, dtype, stored, form, array.shape, pieces) for form, stored, pieces in _forms(array, dtype, label)]
    if (found := _rows(array)) is not None:
        kept, which = found
        made += [Coded(name, dtype, stored, form | ROWS, array.shape, [*which, *pieces]) for form, stored, pieces in _forms(kept, dtype, label)]
    held = [one for one in made if array.nbytes <= EXPANSION * len(one.payload)]
    return min(held, key=lambda one: len(one.payload))


def container(tensors: Iterable[Coded]) -> tuple[bytes, Mapping[str, int]]:
    """Return a file's bytes, and how many of them are what: their sum is all of them."""
    listed = list(tensors)
    entries = [
        b"".join([
            number(len(one.name.encode())), one.name.encode(), bytes([DTYPES.index(one.dtype) | DTYPES.index(one.stored) << 4, one.form, len(one.shape)]),
            *map(number, one.shape), number(len(one.payload)),
        ])
        for one in listed
    ]  # fmt: skip
    directory = b"".join([number(len(listed)), *entries])
    head = MAGIC + bytes([VERSION]) + len(directory).to_bytes(4, "little") + directory
    body = b"".join([_summed(head), *(_summed(one.payload) for one in listed)])
    counted = Counter({"header": len(head), "checksums": 4 * (1 + len(listed)) + 32})
    for one in listed:
        for kind, data in one.pieces:
            counted[kind] += len(data)
    data = body + hashlib.sha256(body).digest()
    assert sum(counted.values()) == len(data), "a byte is not counted"
    return data, dict(counted)


def _summed(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(4, "little")


def dense_bytes(tensors: Iterable[Coded]) -> int:
    """Return the bytes of the tensors as they are."""
    return sum(math.prod(one.shape) * np.dtype(STORED[DTYPES.index(one.dtype)]).itemsize for one in tensors)
