"""The reader of .lbk files by itself: numpy alone, under 150 lines, and a ValueError for whatever is no file of ours."""

import ast
import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.compress.share import _decoder
from limbeck.compress.share._decoder import DENSE, EXPANSION, RAW, ROWS, SPARSE, decode, records
from limbeck.compress.share._encode import container, number, smallest

SOURCE = Path(_decoder.__file__)


def _small() -> bytes:
    """A file with a tensor of each form."""
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random((20, 30)) < 0.1, rng.choice([0.5, -0.5, 1.1], (20, 30)), 0).astype("<f4")
    shared = rng.choice([0.1, 0.2, 0.3], 40).astype("<f4")
    rows = rng.normal(size=(2, 3)).astype("<f4")[[0, 1, 1, 0, 1, 0, 0, 1]]
    tensors = {"sparse": sparse, "shared": shared, "rows": rows, "raw": rng.normal(size=3).astype("<f4"), "count": np.array(938, "<i8")}
    return container([smallest(name, value, {"<i8": "int64"}.get(value.dtype.str, "float32")) for name, value in tensors.items()])[0]


SMALL = _small()
CODED = [smallest(name, value, "int64" if name == "count" else "float32") for name, value in decode(SMALL).items()]


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def written(tensors: list[tuple[bytes, int, int, list[int], bytes]]) -> bytes:
    """A file as the format has it, of (name, types, form, shape, payload) that need not make sense."""
    entries = b"".join(
        number(len(name)) + name + bytes([types, form, len(shape)]) + b"".join(map(number, shape)) + number(len(payload))
        for name, types, form, shape, payload in tensors
    )
    directory = number(len(tensors)) + entries
    head = b"\x89LBK\x01" + len(directory).to_bytes(4, "little") + directory
    parts = [head, *(payload for *_, payload in tensors)]
    return sealed(b"".join(part + zlib.crc32(part).to_bytes(4, "little") for part in parts))


FLOAT = 0x88


def test_it_is_short_and_imports_numpy_alone() -> None:
    source = SOURCE.read_text()
    assert len(source.splitlines()) < 150
    imported = {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_it_runs_as_a_lone_file(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(SOURCE.read_text())
    (tmp_path / "model.lbk").write_bytes(SMALL)
    code = (
        "import sys; sys.path.insert(0, '.'); import reader; found = reader.decode(open('model.lbk', 'rb').read());"
        "assert not {'torch', 'limbeck'} & set(sys.modules); print(*(f'{k}:{v.shape}:{float(v.sum()):.4f}' for k, v in found.items()), sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.strip() == "|".join(f"{name}:{value.shape}:{float(value.sum()):.4f}" for name, value in decode(SMALL).items())


def test_the_small_file_has_a_tensor_of_each_form() -> None:
    assert {one.form & 3 for one in CODED} == {RAW, DENSE, SPARSE}
    assert any(one.form & ROWS for one in CODED)
    assert written([(one.name.encode(), 0x88 if one.name != "count" else 0x35, one.form, list(one.shape), one.payload) for one in CODED]) == SMALL


@pytest.mark.parametrize("place", range(len(SMALL)))
def test_every_changed_byte_is_an_error(place: int) -> None:
    for change in (1, 128, 255):
        damaged = bytearray(SMALL)
        damaged[place] ^= change
        with pytest.raises(ValueError, match=r"."):
            records(bytes(damaged))


def test_every_truncation_and_any_byte_behind_is_an_error() -> None:
    for end in range(len(SMALL)):
        with pytest.raises(ValueError, match=r"."):
            records(SMALL[:end])
    with pytest.raises(ValueError, match="digest"):
        records(SMALL + b"\0")
    with pytest.raises(ValueError, match="digest"):
        records(sealed(SMALL))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_forged_file_is_an_error_or_a_model_of_bounded_size(data: st.DataObject) -> None:
    """Whoever changes a file and seals it again can make another model of it, but no hang, no other error and nothing huge."""
    listing = []
    for made in data.draw(st.lists(st.sampled_from(CODED), min_size=1, max_size=3, unique_by=lambda one: one.name)):
        payload = bytearray(made.payload)
        for _ in range(data.draw(st.integers(0, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        types = data.draw(st.just(0x88) | st.integers(0, 255))
        form = data.draw(st.just(made.form) | st.integers(0, 16))
        shape = data.draw(st.just(list(made.shape)) | st.lists(st.integers(0, 40) | st.integers(0, 2**62), max_size=4))
        listing.append((made.name.encode(), types, form, shape, bytes(payload)))
    file = written(listing)
    try:
        found = records(file)
    except ValueError:
        return
    assert sum(array.nbytes for _, array in found.values()) <= EXPANSION * len(file)


HOSTILE = {
    "huge raw": (FLOAT, 0, [1 << 40], b"abcd"),
    "huge dense": (FLOAT, 1, [1 << 40], bytes([1, 1]) + bytes(8)),
    "huge sparse": (FLOAT, 2, [1 << 40], bytes([8, 0, 0, 0])),
    "many gaps": (FLOAT, 2, [1 << 40], bytes([8]) + number(1 << 40) + bytes([1, 1, 1, 0])),
    "huge rows": (FLOAT, 8, [1 << 40, 2], number(1) + bytes(8)),
    "rows times columns": (FLOAT, 10, [4000, 40_000], number(2) + bytes(500) + bytes([8, 0, 0, 0])),
    "rows beyond the kept": (FLOAT, 8, [3, 1], number(3) + b"\xff" + bytes(12)),
    "huge and nothing": (FLOAT, 0, [0, 1 << 62], b""),
    "a number without end": (FLOAT, 1, [8], b"\xff" * 12),
    "code lengths of no code": (FLOAT, 1, [2], bytes([1, 3]) + bytes(13)),
    "a huge codebook": (FLOAT, 1, [2], bytes([15]) + number(1 << 40) * 15),
    "16-bit codes": (FLOAT, 1, [2], bytes([16]) + bytes(15) + number(1 << 16)),
    "a code that is not there": (FLOAT, 1, [4], bytes([1, 1]) + bytes(4) + b"\x40"),
    "codes that end early": (FLOAT, 1, [9], bytes([1, 2]) + bytes(8) + b"\x40"),
    "bits behind the codes": (FLOAT, 1, [2], bytes([1, 2]) + bytes(8) + b"\x41"),
    "bytes behind the codes": (FLOAT, 1, [2], bytes([1, 2]) + bytes(8) + b"\x40\0"),
    "gaps beyond the end": (FLOAT, 2, [2], bytes([2, 1, 4]) + number(1) + bytes([0, 0x10]) + b"\0"),
    "gaps of nine bits": (FLOAT, 2, [3], bytes([9, 0, 0, 0])),
    "bytes behind the numbers": (FLOAT, 0, [1], bytes(5)),
    "a truth of two": (0, 0, [1], b"\x02"),
    "a type that is not there": (0xAA, 0, [1], bytes(8)),
    "wider than its type": (0x98, 0, [1], bytes(8)),
    "bfloat16 of float32": (0x87, 0, [1], bytes(4)),
    "form 3": (FLOAT, 3, [1], bytes(4)),
    "form 16": (FLOAT, 16, [1], bytes(4)),
    "33 dimensions": (FLOAT, 0, [1] * 33, bytes(4)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_forged_is_refused_at_once_and_without_memory(kind: str) -> None:
    file = written([(b"x", *HOSTILE[kind])])
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ValueError, match="'x' is damaged"):
            records(file)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        assert time.process_time() - began < 2
    finally:
        tracemalloc.stop()


def test_a_directory_that_lies_is_refused() -> None:
    whole = written([(b"x", FLOAT, 0, [1], bytes(4))])
    assert list(decode(whole)) == ["x"]
    with pytest.raises(ValueError, match="come twice"):
        records(written([(b"x", FLOAT, 0, [1], bytes(4))] * 2))
    with pytest.raises(ValueError, match="utf-8"):
        records(written([(b"\xff", FLOAT, 0, [1], bytes(4))]))
    for count in (0, 2, (1 << 62)):
        directory = number(count) + whole[10 : 9 + whole[5]]
        head = whole[:5] + len(directory).to_bytes(4, "little") + directory
        with pytest.raises(ValueError, match=r"ends too early|digest"):
            records(sealed(head + zlib.crc32(head).to_bytes(4, "little") + whole[13 + whole[5] : -32]))
    with pytest.raises(ValueError, match="ends too early"):
        records(whole[:5] + b"\xff\xff\xff\xff" + whole[9:])
    for text in (b"", b"\x89LBK", b"\x89LBK\x02" + whole[5:], b"PK\x03\x04" + bytes(60)):
        with pytest.raises(ValueError, match="version 1"):
            records(text)


def test_the_largest_file_for_its_bytes_is_within_the_bound() -> None:
    file, _ = container([smallest("zeros", np.zeros((4000, 500), "<f8"), "float64")])
    assert 10_000 * len(file) < 2_000_000 * 8
    assert not decode(file)["zeros"].any()


def test_a_net_of_431_thousand_weights_is_read_in_under_a_second() -> None:
    rng = np.random.default_rng(0)
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    book = rng.normal(size=32).astype("<f4")
    for density in (0.08, 1.0):
        arrays = {name: np.where(rng.random(shape) < density, rng.choice(book, shape), np.float32(0)) for name, shape in shapes.items()}
        file, _ = container([smallest(name, array, "float32") for name, array in arrays.items()])
        began = time.process_time()
        found = decode(file)
        assert time.process_time() - began < 1
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())
