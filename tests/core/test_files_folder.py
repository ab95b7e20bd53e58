"""Folders that are whole or absent, whatever happens: full disks, failures, kills, and what kills leave behind."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from limbeck.core import files
from limbeck.core.errors import StorageError
from limbeck.core.files import atomic_folder, atomic_write, sweep


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


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


def test_a_file_cut_short_inside_a_folder_leaves_the_old_one(tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]):
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
    assert all(remain == (["student"] if state else []) for state, _, remain in found)
    assert max(swept for _, swept, _ in found) == 2


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
