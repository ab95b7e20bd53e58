"""Canonical Huffman codes of limited length.

Huffman, "A Method for the Construction of Minimum-Redundancy Codes", Proceedings of the IRE 1952; Larmore and Hirschberg, "A Fast Algorithm for Optimal
Length-Limited Huffman Codes", Journal of the ACM 1990 (package-merge). S symbols, n of them in a stream.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST", "code_lengths", "encode"]

LONGEST = 15
"""Bits of the longest code."""

_BATCH = 1 << 20

Whole = NDArray[np.int64]


def code_lengths(counts: Whole) -> Whole:
    """Return the length in bits `[S]` of each symbol's code, 0 where its count `[S]` is 0: the least `sum(counts * lengths)` with none above 15.

    A single symbol has a code of one bit.

    >>> code_lengths(np.array([5, 1, 0, 2, 9])).tolist()
    [2, 3, 0, 3, 1]
    """
    lengths, used = np.zeros_like(counts), np.flatnonzero(counts)
    assert len(used) <= 1 << LONGEST, f"{len(used)} symbols have no codes of {LONGEST} bits"
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    leaves = used[np.argsort(counts[used], kind="stable")]
    levels, packages = [], np.empty(0, np.int64)
    for _ in range(LONGEST):
        items = np.concatenate([counts[leaves], packages])
        order = np.argsort(items, kind="stable")
        levels.append(order < len(leaves))
        items = items[order][: len(items) // 2 * 2]
        packages = items[::2] + items[1::2]
    taken = 2 * len(leaves) - 2
    for leaf in reversed(levels):
        own = int(leaf[:taken].sum())
        lengths[leaves[:own]] += 1
        taken = 2 * (taken - own)
    return lengths


def _codes(lengths: Whole) -> Whole:
    """Return the canonical codes `[S]`: ascending by length, then by symbol."""
    codes, order = np.zeros_like(lengths), np.argsort(lengths, kind="stable")
    coded = order[lengths[order] > 0]
    starts = np.cumsum(1 << (LONGEST - lengths[coded])) - (1 << (LONGEST - lengths[coded]))
    codes[coded] = starts >> (LONGEST - lengths[coded])
    return codes


def encode(symbols: Whole, lengths: Whole) -> bytes:
    """Return the codes of the symbols `[n]` as one stream, the first bit the highest of the first byte; zero bits fill the last byte.

    >>> encode(np.array([4, 0, 1, 4]), np.array([2, 3, 0, 3, 1])).hex()
    '58'
    """
    codes, made, left = _codes(lengths), [], np.empty(0, bool)
    for begin in range(0, len(symbols), _BATCH):
        part = symbols[begin : begin + _BATCH]
        places = lengths[part][:, None] - 1 - np.arange(int(lengths.max()))  # of the code's bits, its highest first; below 0 there is none
        bits = np.concatenate([left, (codes[part][:, None] >> np.maximum(places, 0) & 1).astype(bool)[places >= 0]])
        whole = len(bits) // 8 * 8
        made.append(np.packbits(bits[:whole]).tobytes())
        left = bits[whole:]
    return b"".join([*made, np.packbits(left).tobytes()])
