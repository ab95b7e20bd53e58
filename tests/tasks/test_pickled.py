"""Pickles: arrays are read, and nothing else is looked up, let alone run."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.core.errors import DataError
from limbeck.tasks._pickled import read_pickle


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """The opcodes of the original files: numpy.core.multiarray, a dtype with align=0 and copy=1, the bytes as a Python 2 str."""
    body = bytes(range(8))
    data = (
        b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05("
        b"K\x01K\x02K\x04\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<I", len(body)) + body + b"tbs."
    )
    path = tmp_path / "data_batch_1"
    path.write_bytes(data)
    found = read_pickle(path)
    assert found["data"].dtype == np.uint8 and found["data"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


class Reduce:
    """Pickles as a call of `what`."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return self.what


def _raw(path: Path, module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument), by its opcodes."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(argument)) + argument.encode() + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("os", "system", "touch {mark}"),
        ("posix", "system", "touch {mark}"),
        ("subprocess", "getoutput", "touch {mark}"),
        ("builtins", "eval", "open({mark!r}, 'w')"),
        ("__builtin__", "eval", "open({mark!r}, 'w')"),
        ("builtins", "exec", "open({mark!r}, 'w')"),
        ("builtins", "getattr", "x"),
        ("numpy", "load", "{mark}"),
        ("numpy", "fromfile", "{mark}"),
        ("numpy", "os.system", "touch {mark}"),
        ("numpy.testing._private.utils", "runstring", "open({mark!r}, 'w')"),
        ("pickle", "loads", "x"),
        ("_codecs", "decode", "x"),
    ],
)
def test_a_malicious_pickle_is_never_run(tmp_path: Path, module: str, name: str, argument: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "train"
    path.write_bytes(_raw(path, module, name, argument.format(mark=str(mark))))
    with pytest.raises(DataError, match=f"asks for {module}.{name}: only arrays") as caught:
        read_pickle(path)
    assert str(path) in str(caught.value) and not mark.exists()


def test_a_chain_of_reductions_is_never_run(tmp_path: Path) -> None:
    """getattr(__import__("os"), "system")(...), hidden inside a CIFAR dictionary and behind protocol 4's stacked names."""
    mark, path = tmp_path / "mark", tmp_path / "train"
    os_module = Reduce(__import__, ("os",))
    system = Reduce(getattr, (os_module, "system"))

    class Call:
        def __reduce__(self) -> Any:
            return Reduce, (system, (f"touch {mark}",))

    for protocol in (2, 4):
        content = {b"labels": [0], b"data": np.zeros((1, 3072), np.uint8), b"extra": [os_module, system]}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(DataError, match="only arrays"):
            read_pickle(path)
    path.write_bytes(pickle.dumps({b"x": Call()}, protocol=2))
    with pytest.raises(DataError, match="only arrays"):
        read_pickle(path)
    assert not mark.exists()


def test_the_unrestricted_reader_would_have_run_it(tmp_path: Path) -> None:
    """That the attack of the tests above works at all."""
    mark = tmp_path / "mark"
    pickle.loads(_raw(mark, "os", "system", f"touch {mark}"))
    assert mark.exists()


GOOD = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, protocol=2)


@pytest.mark.parametrize("content", [b"", GOOD[: len(GOOD) // 2], GOOD[:-1], b"\x80\x02garbage.", GOOD[:20] + b"\xff" * 20 + GOOD[40:]])
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or corrupt") as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)


def test_any_damaged_byte_is_an_error_or_a_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "b"
    small = pickle.dumps({b"data": np.arange(4, dtype=np.uint8), b"labels": [0, 1]}, protocol=2)
    made = np.random.default_rng(0)
    for place in range(len(small)):
        for other in made.integers(0, 256, 2):
            path.write_bytes(small[:place] + bytes([other]) + small[place + 1 :])
            try:
                assert isinstance(read_pickle(path), dict)
            except DataError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.array(np.random.default_rng(0).integers(0, 2, (3, 4)), dtype=dtype, order=order)
    for protocol in (2, 3, 4):
        (tmp_path / "a").write_bytes(pickle.dumps({"x": array, "n": {"plain": [1, "two", None]}}, protocol=protocol))
        found = read_pickle(tmp_path / "a")
        assert np.array_equal(found["x"], array) and found["x"].dtype == array.dtype and found["n"] == {"plain": [1, "two", None]}


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(pickle.dumps({"x": np.array([{}, []], object)}, protocol=2))
    with pytest.raises(DataError, match="truncated or corrupt"):
        read_pickle(path)


def test_a_pickle_cannot_change_what_reads_the_next_one(tmp_path: Path) -> None:
    """BUILD on a looked-up name would set its attributes; and a numpy type is shared by the whole process."""
    path = tmp_path / "a"
    for name in (b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n", b"cnumpy.core.multiarray\n_reconstruct\n"):
        path.write_bytes(b"\x80\x02" + name + b"}X\x04\x00\x00\x00codeK\x01sb.")
        with pytest.raises(DataError, match=r"a is truncated or corrupt"):
            read_pickle(path)
