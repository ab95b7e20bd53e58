"""Read an .lbk file with numpy alone; docs/compression/lbk.md has the format, byte by byte.

This file imports nothing of limbeck: copy it to where weights are to be read. `decode(bytes)` returns {name: array}.
Whatever is wrong with a file is a ValueError, and no file makes arrays of more than EXPANSION bytes for each of its own.
"""

import hashlib
import math
import zlib

import numpy as np

MAGIC, VERSION, EXPANSION = b"\x89LBK", 1, 16384
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
STORED = ("<u1", "<u1", "<i1", "<i2", "<i4", "<i8", "<f2", "<u2", "<f4", "<f8")
RAW, DENSE, SPARSE, ACROSS, ROWS = 0, 1, 2, 4, 8
_CHUNK = 1 << 16


class _Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self):
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is longer than 63 bits")


def _symbols(stream, count, lengths):
    """Decode `count` symbols of the canonical Huffman code with these code lengths (0: no code); they must fill the stream."""
    top, coded = int(lengths.max(initial=0)), np.flatnonzero(lengths)
    order = coded[np.argsort(lengths[coded], kind="stable")]
    spans = 1 << (top - lengths[order])
    full = int(spans.sum())
    if count > 8 * len(stream) or (full != 1 << top and not (top == 1 == len(order))):
        raise ValueError("its codes cannot be meant")
    symbol_of, bits_of = np.zeros(1 << top, np.int32), np.full(1 << top, 1 << 40)  # no such code: a step that leaves the stream
    symbol_of[:full], bits_of[:full] = np.repeat(order, spans), np.repeat(lengths[order], spans)
    found, done, at = np.empty(count, np.int32), 0, 0
    while done < count:
        first = at >> 3
        part = np.frombuffer(stream[first : first + _CHUNK + 2] + bytes(2), np.uint8).astype(np.int32)
        wide = (part[:-2] << 16 | part[1:-1] << 8 | part[2:])[:_CHUNK, None]
        window = (wide >> (24 - top - np.arange(8)) & (1 << top) - 1).ravel()  # the next `top` bits from every bit on
        steps, places, here = bits_of[window].tolist(), [], at - 8 * first
        while here < len(steps) and done + len(places) < count:
            places.append(here)
            here += steps[here]
        if not places:
            raise ValueError("a stream ends too early")
        found[done : done + len(places)] = symbol_of[window[places]]
        done, at = done + len(places), 8 * first + here
    if (at + 7) // 8 != len(stream) or (stream and stream[-1] & (1 << -at % 8) - 1):
        raise ValueError("a stream does not end where its codes do")
    return found


def _raw(data, count, stored):
    return np.frombuffer(data.take(count * stored.itemsize), stored)


def _dense(data, count, stored):
    """Decode `count` values: how many codes have each length, the values in the order of their codes, the codes; no lengths: the values as they are."""
    counts = [data.number() for _ in range(data.take(1)[0])]
    if not (top := len(counts)):
        return _raw(data, count, stored)
    if top > 15 or (sum(n << (top - bits) for bits, n in enumerate(counts, 1)) != 1 << top and counts != [1]):
        raise ValueError("its codes cannot be meant")
    book = _raw(data, sum(counts), stored)
    return book[_symbols(data.take(len(data.data) - data.at), count, np.repeat(np.arange(1, top + 1), counts))]


def _sparse(data, size, stored):
    """Decode zeros and the values among them: a gap g below 2^b - 1 is g zeros and a value; 2^b - 1 is as many zeros, and no value."""
    width, entries, listed, length = data.take(1)[0], data.number(), data.number(), data.number()
    top = (1 << width) - 1
    if not 1 <= width <= 8 or listed > top + 1:
        raise ValueError("its gaps cannot be meant")
    nibbles = np.frombuffer(data.take((listed + 1) // 2), np.uint8)
    lengths = np.stack([nibbles & 15, nibbles >> 4], 1).ravel()[:listed].astype(np.int64)
    stream = data.take(length)
    gaps = _symbols(stream, entries, lengths) if entries or length else np.empty(0, np.int32)
    ends, valued = np.cumsum(gaps + (gaps < top), dtype=np.int64), gaps < top
    if not 0 <= size - int(ends.max(initial=0)) < top:
        raise ValueError("its gaps do not add up to its size")
    flat = np.zeros(size, stored)
    if valued.any():
        flat[ends[valued] - 1] = _dense(data, int(valued.sum()), stored)
    return flat


def _array(payload, types, form, shape, file_bytes):
    dtype, stored = np.dtype(STORED[types & 15]), np.dtype(STORED[types >> 4])
    if form & 3 > SPARSE or form > 15 or len(shape) > 32 or not (types & 15 == types >> 4 or (types >> 4 != 7 != types & 15 and np.can_cast(stored, dtype))):
        raise ValueError("it cannot be meant")
    if math.prod(shape) * dtype.itemsize > EXPANSION * len(payload) or max(shape, default=0) > EXPANSION * file_bytes:
        raise ValueError("it claims more numbers than its bytes can hold")
    data, inner, rows = _Bytes(payload), shape, None
    if form & ROWS:  # which of the rows that follow each row is
        kept = data.number()
        width = max(1, (kept - 1).bit_length())
        if not shape or not 1 <= kept <= shape[0] or width > 31:
            raise ValueError("its rows cannot be meant")
        bits = np.unpackbits(np.frombuffer(data.take((shape[0] * width + 7) // 8), np.uint8), count=shape[0] * width)
        rows, inner = bits.reshape(-1, width) @ (1 << np.arange(width)[::-1]), (kept, *shape[1:])
    flat = (_raw, _dense, _sparse)[form & 3](data, math.prod(inner), stored)
    whole = flat.reshape(inner, order="F" if form & ACROSS else "C")
    array = (whole if rows is None else whole[rows]).astype(dtype)
    if data.at != len(payload) or (types & 15 == 0 and array.max(initial=0) > 1):
        raise ValueError("it is not what it claims to be")
    return array if types & 15 else array.view(bool)


def records(data):
    """Return {name: (dtype, array)} in the file's order; an array of bfloat16 holds its bits as uint16."""
    head, found = _Bytes(data), {}
    if data[:4] != MAGIC or data[4:5] != bytes([VERSION]):
        raise ValueError(f"it does not begin as an .lbk file of version {VERSION} does")
    listing = _Bytes(head.take(9 + int.from_bytes(data[5:9], "little"))[9:])
    if zlib.crc32(data[: head.at]) != int.from_bytes(head.take(4), "little"):
        raise ValueError("its directory does not match its checksum")
    for _ in range(listing.number()):
        name, types, form = listing.take(listing.number()).decode(), listing.take(1)[0], listing.take(1)[0]
        shape, payload = tuple(listing.number() for _ in range(listing.take(1)[0])), head.take(listing.number())
        if name in found or zlib.crc32(payload) != int.from_bytes(head.take(4), "little"):
            raise ValueError(f"the bytes of {name!r} do not match their checksum, or come twice")
        try:
            found[name] = DTYPES[types & 15], _array(payload, types, form, shape, len(data))
        except (IndexError, ValueError) as error:
            raise ValueError(f"{name!r} is damaged: {error}") from None
    if listing.at != len(listing.data) or head.at != len(data) - 32 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise ValueError("it does not match its digest")
    return found


def decode(data):
    """Return the arrays of an .lbk file by name; bfloat16, which numpy has not, as the float32 of the same value."""
    return {name: (array.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else array for name, (dtype, array) in records(data).items()}
