"""Tensors into an .lbk file and back, to the bit, in the fewest bytes of all forms."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from limbeck.compress.share._decoder import ACROSS, DENSE, DTYPES, RAW, ROWS, SPARSE, STORED, decode, records
from limbeck.compress.share._encode import _gaps, container, smallest


def back(array: np.ndarray, dtype: str) -> np.ndarray:
    data, counted = container([smallest("one", array, dtype)])
    assert sum(counted.values()) == len(data)
    told, found = records(data)["one"]
    assert told == dtype
    assert found.shape == array.shape
    return found


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.astype(a.dtype.newbyteorder("<")).tobytes() == b.astype(b.dtype.newbyteorder("<")).tobytes()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_array_comes_back_to_the_bit(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    kind = np.dtype(STORED[DTYPES.index(dtype)])
    shape = data.draw(nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    raw = nps.arrays(f"<u{kind.itemsize}", shape, elements=st.integers(0, 1) if dtype == "bool" else st.integers(0, 2 ** (8 * kind.itemsize) - 1))
    few = nps.arrays(f"<u{kind.itemsize}", shape, elements=st.sampled_from([0, 0, 0, 1]))
    array = data.draw(raw | few).view(kind)
    assert same(back(array, dtype), array)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0]), st.integers(1, 40))
def test_sparse_and_shared_weights_come_back_to_the_bit(seed: int, density: float, numbers: int) -> None:
    rng = np.random.default_rng(seed)
    book = rng.normal(size=numbers).astype("<f4")
    array = np.where(rng.random((30, 70)) < density, book[rng.integers(0, numbers, (30, 70))], np.float32(0))
    assert same(back(array, "float32"), array)


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 8))
def test_gaps_are_counted_as_told(valued: list[bool], width: int) -> None:
    top, at, seen = 2**width - 1, 0, []
    for gap in _gaps(np.array(valued, dtype=bool), width).tolist():
        at += gap
        if gap < top:
            seen.append(at)
            at += 1
    assert seen == [place for place, one in enumerate(valued) if one]
    assert 0 <= len(valued) - at < top


def _form(array: np.ndarray, dtype: str = "float32") -> int:
    return smallest("one", array, dtype).form


def test_each_form_is_taken_where_it_is_the_smallest() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 60)).astype("<f4")
    assert _form(noise) == RAW
    assert _form(np.sign(noise)) == DENSE
    assert _form(np.where(rng.random((50, 60)) < 0.05, np.sign(noise), np.float32(0))) & 3 == SPARSE
    columns = np.where(rng.random(60) < 0.1, np.round(noise * 4), np.float32(0)).astype("<f4")
    assert _form(columns) == SPARSE | ACROSS
    assert _form(noise[rng.integers(0, 5, 50)]) == RAW | ROWS


def test_pruned_weights_that_are_not_shared_are_stored_as_they_are_with_their_gaps() -> None:
    rng = np.random.default_rng(1)
    array = np.where(rng.random((300, 300)) < 0.1, rng.normal(size=(300, 300)), 0).astype("<f4")
    made = smallest("one", array, "float32")
    assert made.form & 3 == SPARSE
    assert 4.5 * np.count_nonzero(array) < len(made.payload) < 4.7 * np.count_nonzero(array)  # 32 bits and the 4.7 of entropy each
    assert same(back(array, "float32"), array)


def test_a_code_costs_its_entropy_and_no_more_than_a_bit_above() -> None:
    rng = np.random.default_rng(2)
    array = rng.choice(np.linspace(-1, 1, 16), p=np.arange(1, 17) / 136, size=20_000).astype("<f4")
    shares = np.bincount(np.unique(array, return_inverse=True)[1]) / 20_000
    entropy = -(shares * np.log2(shares)).sum() / 8 * 20_000
    pieces = Counter({kind: len(data) for kind, data in smallest("one", array, "float32").pieces})
    assert entropy <= pieces["indices"] < entropy * 1.02
    assert pieces["codebooks"] == 64


@pytest.mark.parametrize(
    ("value", "bytes_each"), [(3.0, 1), (-3.0, 1), (300.0, 2), (0.5, 2), (-0.0, 2), (np.inf, 2), (np.nan, 2), (0.1, 4), (70_001.0, 4), (1e-8, 4)]
)  # fmt: skip
def test_numbers_are_stored_in_the_narrowest_type_that_holds_them(value: float, bytes_each: int) -> None:
    array = np.array([value, 1.0], "<f4")
    assert len(smallest("one", array, "float32").payload) == 2 * bytes_each
    assert same(back(array, "float32"), array)


def test_bfloat16_is_read_as_the_float32_of_the_same_value() -> None:
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x7F80], "<u2")
    data, _ = container([smallest("one", bits, "bfloat16")])
    assert decode(data)["one"].tolist() == [1.0, -2.0, 2.0**-133, np.inf]
    assert records(data)["one"][0] == "bfloat16"


def test_names_and_order_are_kept() -> None:
    names = ["z", "ä.weight", "", "a" * 300]
    data, _ = container([smallest(name, np.zeros(2, "<f4"), "float32") for name in names])
    assert list(decode(data)) == names
    assert decode(container([])[0]) == {}


def test_the_documented_example_is_this_file() -> None:
    w = np.array([[0, 0, 0.5, 0], [-1, 0, 0, 0]], "<f4")
    head = "89 4c 42 4b 01 09 00 00 00 01 01 77 68 01 02 02 04 0b 96 87 8c 2f"
    payload = "02 01 02 00 00 00 38 00 bc 26 00 82 3c 14 6c"
    assert container([smallest("w", w, "float32")])[0][:-32] == bytes.fromhex(f"{head} {payload}")
