"""Files that are whole or absent, whatever happens."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from safetensors import SafetensorError

from limbeck.core import files
from limbeck.core.errors import ArtifactError, LockedError, StorageError
from limbeck.core.files import atomic_write, digest, lock, read_json, sha256, storage, write_json


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# One file


def test_a_file_is_written_and_replaced(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "a.bin"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert listing(path.parent) == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: OSError):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=r"no space left while writing .*a\.bin: free some, or choose another folder with --out"):
        atomic_write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["a.bin"]


def test_a_file_cut_short_by_the_system_leaves_the_old_one(tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")
    with small_disk(10_000), pytest.raises(StorageError, match=r"cannot write .*a\.bin \(File too large\): choose another folder"):
        atomic_write(path, b"x" * 1_000_000)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["a.bin"]


def test_ctrl_c_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("below", "reason"),
    [("file/a.bin", "File exists|Not a directory"), ("file/deep/a.bin", "Not a directory"), ("n" * 300, "File name too long"), ("folder", "Is a directory")],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, below: str, reason: str):
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=rf"^cannot write .*{below} \(({reason})\): choose another folder with --out$"):
        atomic_write(tmp_path / below, b"x")
    assert listing(tmp_path) == ["file", "folder"]


def test_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def closed(*, dir: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir / ".a"))

    monkeypatch.setattr(files.tempfile, "mkstemp", closed)
    with pytest.raises(StorageError, match=r"cannot write .*a\.bin \(Permission denied\)"):
        atomic_write(tmp_path / "a.bin", b"x")


# Whose error it is


def test_an_error_about_a_file_elsewhere_passes_untouched(tmp_path: Path):
    error = PermissionError(errno.EACCES, "Permission denied", "/data/labels.gz")
    with pytest.raises(PermissionError) as caught, storage(tmp_path / "run"):
        raise error
    assert caught.value is error


def test_a_full_disk_elsewhere_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="no space left while writing /elsewhere/x: free some"), storage(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/x")


def test_other_errors_pass_untouched(tmp_path: Path):
    for error in (ConnectionResetError(errno.ECONNRESET, "reset"), ValueError("x"), SafetensorError("header too large"), StorageError("mine")):
        with pytest.raises(type(error)) as caught, storage(tmp_path):
            raise error
        assert caught.value is error


def test_a_full_disk_under_safetensors_is_told(tmp_path: Path):
    with pytest.raises(StorageError, match=f"no space left while writing {tmp_path}"), storage(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


# The lock

HOLD = """
import sys, time
from pathlib import Path
from limbeck.core.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"another limbeck run is working in {folder}: wait for it, or choose another folder with --out"), lock(folder):
            pass
        first.kill()
    with lock(folder):
        pass


def test_a_lock_is_let_go_of_when_the_block_ends_however_it_ends(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        _ = 1 / 0
    with lock(tmp_path), pytest.raises(LockedError), lock(tmp_path):
        pass
    with lock(tmp_path / "new" / "folder"):
        assert (tmp_path / "new" / "folder").is_dir()


def test_a_lock_is_not_inherited_by_programs_that_are_started(tmp_path: Path):
    with lock(tmp_path):
        child = subprocess.Popen([sys.executable, "-S", "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
    try:
        with lock(tmp_path):
            pass
    finally:
        child.communicate(b"\n")


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file"), lock(tmp_path / "file"):
        pass


# Digests and JSON


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_a_digest_stays_what_it_was_in_earlier_versions():
    """Every cached stage is addressed by it: a change of this figure trains everything again."""
    value = {"b": [1, 2.5, None, True, "é"], "a": {"y": 1, "x": "z"}}
    assert digest(value) == hashlib.sha256(rb'{"a":{"x":"z","y":1},"b":[1,2.5,null,true,"\u00e9"]}').hexdigest()
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of the two bytes {}


def test_a_digest_does_not_depend_on_order_and_depends_on_all_else():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest((1, 2)) == digest([1, 2])
    values = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": 1.0}, {"a": None}, {"a": True}, {"a": [1]}, [["a", 1]], [1, 2], [2, 1], "", None, {}]
    assert len({digest(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {1, 2}}, Path()])
def test_a_digest_of_what_json_cannot_hold_is_refused(value: object):
    with pytest.raises((TypeError, ValueError)):
        digest(value)


def test_json_comes_back(tmp_path: Path):
    value = {"b": [1, 2.5, None, True, "é"], "a": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize("value", [{"ece": float("nan")}, [float("inf")], {"a": Path()}])
def test_json_has_no_nan_and_the_file_stays(tmp_path: Path, value: object):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises((TypeError, ValueError), match=r"metrics\.json cannot be written: "):
        write_json(path, value)
    assert read_json(path) == {"a": 1}
    assert listing(tmp_path) == ["metrics.json"]


def test_missing_json_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match=f"^{tmp_path}/a.json is missing: is {tmp_path} an artifact or a run of limbeck\\?$"):
        read_json(tmp_path / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file an artifact or a run"):
        read_json(tmp_path / "file" / "manifest.json")


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1', b"\xff\xfe\xfa", b"\x00" * 50, b"nonsense\n\nmore", b'{"a": 1}garbage', b"[" * 100_000])
def test_damaged_json_is_named_in_one_line(tmp_path: Path, data: bytes):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"a\.json is not JSON \(.*\): it is damaged; delete its stage and run the recipe again") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_json_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)


def test_every_public_name_is_told():
    assert sorted(files.__all__) == files.__all__
    assert all(getattr(files, name).__doc__ for name in files.__all__)
