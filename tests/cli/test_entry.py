"""From arguments to an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck import __version__
from limbeck.cli.entry import invoke

HEAVY = {"torch", "lightning_fabric", "onnx", "onnxruntime", "onnxscript", "sklearn", "scipy", "numpy", "limbeck.pipeline.recipe"}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["rnu"], ["clean", "--json"], ["report", "no-such-folder"]])
def test_nothing_heavy_is_imported_for_light_work(arguments, tmp_path):
    code = f"import sys\nfrom limbeck.cli.entry import invoke\ninvoke({arguments!r})\nprint(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"


def test_python_m_limbeck_and_an_exit_code():
    assert subprocess.run([sys.executable, "-m", "limbeck", "--version"], capture_output=True, text=True).stdout == f"limbeck {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "limbeck", "run"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "limbeck: Missing argument 'RECIPE'. (limbeck --help)\n"


def test_help_is_success_and_no_command_is_not(capsys):
    assert invoke(["--help"]) == 0
    assert "Usage: limbeck" in capsys.readouterr().out
    assert invoke([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: limbeck" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run", "digits", "--jsno"], "No such option: --jsno (Possible options: --json)"),
        (["run", "digitz"], "there is no recipe 'digitz'; did you mean 'digits'?"),
        (["run", "digits", "--set", "stages.student.epoch=3"], "did you mean 'epochs'?"),
        (["run", "digits", "--set", "stages.studnet.epochs=3"], "there is no stage 'studnet'; did you mean 'student'?"),
        (["run", "digits", "--set", "stages.student"], "must read a.b.c=value"),
        (["run", "digits", "--set", "stages.student.objectives.0.kind=response.kx"], "did you mean 'response.kd'?"),
        (["run", "digits", "--set", "stages.student.objectives.0.temprature=2"], "objectives.response.kd; did you mean 'temperature'?"),
        (["run", "digits", "--set", "stages.student.objectives.0.temperature=0"], "temperature is 0; it must be a finite number above zero"),
        (["run", "digits", "--set", "stages.student.objectives.0.weight=-1"], "is -1; it must be a finite number of zero or more"),
        (["run", "digits", "--set", "task.data=digitz"], "'digits'"),
        (["check", "digits", "--set", "stages.int8.of=student"], "takes a graph, and 'student' gives a module"),
        (["show", "response.kdd"], "no part and no recipe 'response.kdd'; did you mean 'response.kd'?"),
        (["report", "nowhere"], "nowhere/run.json is missing"),
        (["measure", "nowhere"], "nowhere/manifest.json is missing"),
        (["measure", "nowhere", "--threads", "0"], "Invalid value for '--threads'"),
        (["predict", "nowhere", "x.npy"], "nowhere/manifest.json is missing"),
        (["clean", "nowhere"], "nowhere is no run of limbeck"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("limbeck: ")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "kind"), [(["run", "digitz"], "RecipeError"), (["run"], "UsageError"), (["measure", "nowhere"], "ArtifactError")])
def test_with_json_an_error_is_the_one_object(arguments, kind, capfd):
    assert invoke([*arguments, "--json"]) == 2
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert error["type"] == kind
    assert err == f"limbeck: {error['message']}\n"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("limbeck.pipeline.catalog.schema", broken)
    with pytest.raises(ZeroDivisionError):
        invoke(["schema"])


def test_ctrl_c_is_130(monkeypatch, capfd):
    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.pipeline.catalog.schema", interrupted)
    assert invoke(["schema"]) == 130
    monkeypatch.setattr("limbeck.report.run.run", interrupted)
    capfd.readouterr()
    assert invoke(["run", "digits"]) == 130
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("run the same command again to go on\n")


@pytest.mark.parametrize(("raised", "code"), [("TrainingError", 1), ("ParityError", 1), ("Interrupted", 130), ("LockedError", 2), ("DataError", 2)])
def test_each_error_has_its_exit_code(raised, code, monkeypatch, capfd):
    def fails(*_args, **_more):
        import limbeck.core.errors

        raise getattr(limbeck.core.errors, raised)("two\nlines")

    monkeypatch.setattr("limbeck.report.run.run", fails)
    assert invoke(["run", "digits", "--json"]) == code
    out, err = capfd.readouterr()
    assert json.loads(out) == {"error": {"type": raised, "message": "two lines"}}
    assert err == "limbeck: two lines\n"


def test_a_part_in_the_current_folder_is_found_by_the_installed_command(tmp_path):
    lines = "from torch import nn\n\n\ndef make(in_shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    (tmp_path / "mine.py").write_text(lines)
    command = Path(sys.executable).parent / "limbeck"
    model = '{kind: "python:mine:make"}'
    asked = [str(command), "check", "digits", "--set", f"stages.alone.model={model}"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stage alone: train 650 parameters" in done.stdout
