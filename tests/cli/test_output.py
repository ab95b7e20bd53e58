"""Standard output and standard error, whole, closed and full."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from limbeck.cli.output import complain, rendered, say_json

FULL = Path("/dev/full")


def python(code: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", f"from limbeck.cli.output import *\n{code}"], capture_output=True, text=True, **how)


def test_results_alone_reach_standard_output():
    done = python("import os, subprocess\nwith stdout_kept():\n print('a'); os.write(1, b'b\\n'); subprocess.run(['echo', 'c'])\nsay('result')")
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert sorted(done.stderr.split()) == ["a", "b", "c"]


def test_a_library_that_kept_hold_of_standard_output_is_heard_on_standard_error():
    done = python("import sys\nheld = sys.stdout\nwith stdout_kept():\n held.write('noise\\n')\nsay('result')")
    assert (done.stdout, done.stderr) == ("result\n", "noise\n")


def test_standard_output_comes_back_after_an_error():
    done = python("try:\n with stdout_kept():\n  raise ValueError\nexcept ValueError:\n say('result')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "result\n", "")


def test_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-c", "from limbeck.cli.output import say\nsay('x')"], stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not FULL.exists(), reason="this platform has no /dev/full")
def test_a_full_disk_is_said():
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", "from limbeck.cli.output import say\nsay('x')"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "limbeck: cannot write to standard output (No space left on device): the result is not shown\n"


def test_closed_streams():
    script = f"exec {sys.executable} -c \"from limbeck.cli.output import *; complain('heard'); say('x')\""
    done = subprocess.run(["sh", "-c", f"{script} >&-"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "limbeck: heard\nlimbeck: cannot write to standard output (it is closed): the result is not shown\n"
    done = subprocess.run(["sh", "-c", f"{script} 2>&-"], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "x\n")


def test_json_is_whole_and_has_no_nan(capsys):
    say_json({"name": "größe"})
    assert capsys.readouterr().out == '{\n  "name": "gr\\u00f6\\u00dfe"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        say_json({"x": float("nan")})


def test_a_drawing_for_a_file_is_plain_and_not_cut(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = Table(box=None, pad_edge=False)
    table.add_column("a" * 70, style="bold red")
    table.add_column("b" * 70)
    assert rendered(table) == f"{'a' * 70}  {'b' * 70}"


def test_complaints_have_the_name_in_front(capsys):
    complain("x")
    complain("y", prefix="")
    assert capsys.readouterr() == ("", "limbeck: x\ny\n")
