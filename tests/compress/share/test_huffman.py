"""Canonical Huffman codes: against Huffman's own tree, against every code of limited length, and against codes written as text."""

import heapq
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compress.share import _huffman
from limbeck.compress.share._huffman import code_lengths, encode


def huffman_cost(counts: list[int]) -> int:
    """The bits of an unlimited Huffman code: the sum of all inner nodes."""
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        node = heapq.heappop(heap) + heapq.heappop(heap)
        total += node
        heapq.heappush(heap, node)
    return total


def naive_codes(lengths: list[int]) -> dict[int, str]:
    """Canonical codes as text: one more than the one before, zeros behind it where the length grows."""
    code, before, made = -1, 0, {}
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code = (code + 1) << (length - before)
        made[symbol], before = f"{code:0{length}b}", length
    return made


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_it_costs_what_huffmans_tree_does(counts: list[int]) -> None:
    used, lengths = [count for count in counts if count], code_lengths(np.array(counts))
    assert [bool(length) for length in lengths] == [bool(count) for count in counts]
    if len(used) > 1:
        assert int(np.array(counts) @ lengths) == huffman_cost(used)
        assert sum(2.0 ** -int(length) for length in lengths if length) == 1.0


@given(st.lists(st.integers(1, 100), min_size=2, max_size=6))
def test_of_limited_length_none_is_shorter(counts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_huffman, "LONGEST", 3)
        lengths = code_lengths(np.array(counts))
    every = (one for one in product(range(1, 4), repeat=len(counts)) if sum(2**-length for length in one) <= 1)
    assert lengths.max() <= 3
    assert int(np.array(counts) @ lengths) == min(sum(n * length for n, length in zip(counts, one, strict=True)) for one in every)


def test_no_code_is_longer_than_15_bits() -> None:
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])  # whose tree is 29 deep
    lengths = code_lengths(np.array(counts))
    assert lengths.max() == 15
    assert sum(2.0 ** -int(length) for length in lengths) == 1.0
    assert set(code_lengths(np.ones(1 << 15, np.int64))) == {15}


def test_a_single_symbol_has_one_bit() -> None:
    assert code_lengths(np.array([0, 7, 0])).tolist() == [0, 1, 0]
    assert code_lengths(np.array([0])).tolist() == [0]


@given(st.lists(st.integers(0, 9), max_size=300))
def test_a_stream_is_its_codes_one_after_another(symbols: list[int]) -> None:
    lengths = code_lengths(np.bincount(symbols, minlength=10).astype(np.int64))
    codes = naive_codes(lengths.tolist())
    text = "".join(codes[symbol] for symbol in symbols)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_huffman, "_BATCH", 7)
        stream = encode(np.array(symbols, dtype=np.int64), lengths)
    assert "".join(f"{byte:08b}" for byte in stream) == text.ljust((len(text) + 7) // 8 * 8, "0")
