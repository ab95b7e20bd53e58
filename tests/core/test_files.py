"""Files that are whole or absent, whatever happens."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError

from limbeck.core import files
from limbeck.core.errors import ArtifactError, LockedError, StorageError
from limbeck.core.files import atomic_folder, atomic_write, digest, lock, read_json, sha256, storage, sweep, write_json


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow past `limit` bytes: writing on fails with EFBIG, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


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


def test_a_file_cut_short_by_the_system_leaves_the_old_one(tmp_path: Path):
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


# A folder


def fill(folder: Path, generation: int, count: int = 3) -> None:
    (folder / "sub").mkdir()
    for i in range(count):
        (folder / f"{i}.txt").write_text(str(generation))
    (folder / "sub" / "deep.txt").write_text(str(generation))


def generations(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.rglob("*.txt"))]


def test_a_folder_appears_at_once(tmp_path: Path):
    path = tmp_path / "stages" / "student"
    with atomic_folder(path) as scratch:
        fill(scratch, 1)
        assert not path.exists()
        assert scratch.parent == path.parent
    assert generations(path) == ["1"] * 4
    assert path.stat().st_mode & 0o777 == 0o755
    assert listing(path.parent) == ["student"]


def test_a_folder_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "student"
    with atomic_folder(path) as scratch:
        fill(scratch, 1, count=5)
    with atomic_folder(path) as scratch:
        fill(scratch, 2, count=2)
        assert generations(path) == ["1"] * 6
    assert generations(path) == ["2"] * 3
    assert listing(tmp_path) == ["student"]


@pytest.mark.parametrize("stands", ["file", "link", "dangling link"])
def test_whatever_stood_there_is_replaced(tmp_path: Path, stands: str):
    path, other = tmp_path / "student", tmp_path / "other"
    other.mkdir()
    (other / "kept.txt").write_text("kept")
    if stands == "file":
        path.write_text("a file")
    else:
        path.symlink_to(other if stands == "link" else tmp_path / "nowhere")
    with atomic_folder(path) as scratch:
        fill(scratch, 1)
    assert not path.is_symlink()
    assert generations(path) == ["1"] * 4
    assert listing(tmp_path) == ["other", "student"]
    assert listing(other) == ["kept.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [True, False])
def test_a_block_that_fails_leaves_what_was(tmp_path: Path, error: type[BaseException], before: bool):
    path = tmp_path / "student"
    if before:
        with atomic_folder(path) as scratch:
            fill(scratch, 1)
    with pytest.raises(error), atomic_folder(path) as scratch:
        fill(scratch, 2)
        raise error
    assert listing(tmp_path) == (["student"] if before else [])
    assert not before or generations(path) == ["1"] * 4


def nth_fails(call: Callable[..., object], n: int) -> Callable[..., object]:
    """`call`, whose n-th time the disk is full."""
    times = 0

    def counted(*args: object, **named: object) -> object:
        nonlocal times
        times += 1
        return full() if times == n else call(*args, **named)

    return counted


@pytest.mark.parametrize(("call", "n"), [("fsync", 1), ("fsync", 6), ("chmod", 1), ("replace", 1), ("replace", 2)])
def test_a_full_disk_at_any_step_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, n: int):
    path = tmp_path / "student"
    with atomic_folder(path) as scratch:
        fill(scratch, 1)
    monkeypatch.setattr(os, call, nth_fails(getattr(os, call), n))
    with pytest.raises(StorageError, match=r"no space left while writing .*student: "), atomic_folder(path) as scratch:
        fill(scratch, 2)
    monkeypatch.undo()
    assert generations(path) == ["1"] * 4
    assert listing(tmp_path) == ["student"]


def test_a_file_cut_short_inside_a_folder_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "student"
    with atomic_folder(path) as scratch:
        fill(scratch, 1)
    with small_disk(10_000), pytest.raises(StorageError, match=r"cannot write .*student \(File too large\)"), atomic_folder(path) as scratch:
        (scratch / "model.safetensors").write_bytes(b"x" * 1_000_000)
    assert generations(path) == ["1"] * 4
    assert listing(tmp_path) == ["student"]


def test_when_the_old_folder_cannot_come_back_it_is_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "student"
    with atomic_folder(path) as scratch:
        fill(scratch, 1)
    rename = os.replace

    def once(source: Path, target: Path) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "replace", full)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(StorageError), atomic_folder(path) as scratch:
        fill(scratch, 2)
    (aside,) = tmp_path.iterdir()
    assert generations(aside / "old") == ["1"] * 4


# Killed

CHILD = """
import os, signal, sys
from pathlib import Path
from limbeck.core.files import atomic_folder, atomic_write
path = Path(sys.argv[1])
generation = 0
print("ready", flush=True)
while True:
    generation += 1
    with atomic_folder(path) as scratch:
        for i in range(8):
            (scratch / f"{i}.txt").write_text(str(generation))
    atomic_write(path.parent / "count", str(generation).encode() * 1000)
"""


def test_kill_at_random_moments_never_leaves_a_mixture(tmp_path: Path):
    path, chance = tmp_path / "student", random.Random(0)
    left = 0
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.005, 0.06))
            child.kill()
        if path.exists():
            assert listing(path) == [f"{i}.txt" for i in range(8)]
            assert len(set(generations(path))) == 1
        if (tmp_path / "count").exists():
            text = (tmp_path / "count").read_text()
            assert text == text[: len(text) // 1000] * 1000
        left += len(sweep(tmp_path))
        assert {entry.name for entry in tmp_path.iterdir()} <= {"student", "count"}
    assert left > 0, "no kill fell into a write: the test shows nothing"


STEPS = """
import json, os, shutil, signal, sys
from pathlib import Path
from limbeck.core import files

def killed_at(n, work):
    "Run `work` in a child that is killed when it is about to make its n-th change to the disk; whether it came so far."
    child = os.fork()
    if child == 0:
        times = 0
        def counted(call):
            def counting(*args, **named):
                nonlocal times
                times += 1
                if times == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **named)
            return counting
        for name in ("fsync", "chmod", "replace", "rmdir", "unlink", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

def replace(path, generation):
    with files.atomic_folder(path) as scratch:
        for name in "abc":
            (scratch / name).write_text(generation)

root, found = Path(sys.argv[1]), []
n = 1
while True:
    path = root / str(n) / "student"
    replace(path, "old")
    if not killed_at(n, lambda: replace(path, "new")):
        break
    state = sorted(file.read_text() for file in path.iterdir()) if path.exists() else []
    found.append([state, len(files.sweep(path.parent)), sorted(e.name for e in path.parent.iterdir())])
    n += 1
print(json.dumps(found))
"""


def test_a_kill_before_each_single_step_leaves_the_old_folder_the_new_one_or_none(tmp_path: Path):
    found = json.loads(subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], check=True, capture_output=True, text=True).stdout)
    states = [state for state, _, _ in found]
    assert {tuple(state) for state in states} == {("old",) * 3, (), ("new",) * 3}
    assert states.count([]) == 1, "only between the two renames is there none"
    order = [["old"] * 3, [], ["new"] * 3]
    assert [order.index(state) for state in states] == sorted(order.index(state) for state in states)
    for state, swept, remain in found:
        assert remain == (["student"] if state else [])
        assert swept or state == ["new"] * 3


# Sweeping


def test_sweep_takes_what_tempfile_made_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keep = [".lock", ".hidden", "a.tmp", ".a.tmp", ".a.b.tmp", ".name.ABCDEFGH.tmp", ".name.abcdefgh.tmp.txt", "name.abcdefgh.tmp", ".gitignore"]
    for name in keep:
        (tmp_path / name).write_text("mine")
    (tmp_path / "stages" / ".student.0a_9zzzz.tmp" / "old").mkdir(parents=True)
    (tmp_path / "stages" / ".student.0a_9zzzz.tmp" / "old" / "f").write_text("stale")
    (tmp_path / "stages" / "student" / "checkpoint").mkdir(parents=True)
    (tmp_path / "stages" / "student" / "checkpoint" / ".state.json.abcdefgh.tmp").write_text("stale")
    (tmp_path / "stages" / "student" / "metrics.json").write_text("{}")
    assert sorted(sweep(tmp_path)) == sorted([
        tmp_path / "stages" / ".student.0a_9zzzz.tmp",
        tmp_path / "stages" / "student" / "checkpoint" / ".state.json.abcdefgh.tmp",
    ])  # fmt: skip
    assert listing(tmp_path) == sorted([*keep, "stages"])
    assert listing(tmp_path / "stages") == ["student"]
    assert listing(tmp_path / "stages" / "student") == ["checkpoint", "metrics.json"]
    assert sweep(tmp_path) == []


def test_sweep_finds_every_name_that_a_write_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The pattern is that of the code beside it: a write that is cut off without a chance to clean up."""
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    for name in ("metrics.json", "a b", "x.y.z", "Größe", "-", ".lock"):
        with pytest.raises(StorageError), monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            atomic_write(tmp_path / name, b"x")
        with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / name):
            _ = 1 / 0
    monkeypatch.undo()
    assert len(listing(tmp_path)) == 12
    assert len(sweep(tmp_path)) == 12
    assert listing(tmp_path) == []


def test_sweep_follows_no_link(tmp_path: Path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    (elsewhere / ".a.abcdefgh.tmp").mkdir(parents=True)
    run.mkdir()
    (run / "link").symlink_to(elsewhere)
    (run / ".b.abcdefgh.tmp").symlink_to(elsewhere)
    sweep(run)
    assert listing(elsewhere) == [".a.abcdefgh.tmp"]


def test_sweep_of_no_folder_finds_nothing(tmp_path: Path):
    assert sweep(tmp_path / "absent") == []


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
    assert shutil.rmtree is files.shutil.rmtree
