"""A comparison of methods: who is compared, on what, and what the figures are."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.core.errors import LimbeckError, MismatchError, RecipeError
from limbeck.core.events import Note, Progress
from limbeck.core.files import read_json
from limbeck.pipeline.study import compare_methods

RECIPE: dict[str, Any] = {
    "name": "small",
    "task": {"kind": "image", "data": "digits", "subset": 200},
    "stages": {
        "teacher": {"kind": "train", "model": {"kind": "mlp", "widths": [16]}, "epochs": 2},
        "student": {"kind": "distill", "teacher": {"of": "teacher", "kind": "frozen"}, "model": {"kind": "mlp", "widths": [4]}, "epochs": 1, "batch_size": 32},
    },
    "measure": {"latency": False},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    out, heard = tmp_path_factory.mktemp("compare"), list[Any]()
    told = compare_methods(RECIPE, methods=["logit_matching", "lsp"], seeds=2, factors=[0.5, 1.0], out=out, listener=heard.append)
    return out, told, heard


def trials(out: Path, method: str) -> list[Mapping[str, Any]]:
    return [read_json(file) for file in sorted(out.glob(f"trials/{method}-*.json"))]


def test_plain_distillation_and_the_student_alone_are_always_there(found: tuple[Path, dict[str, Any], list[Any]]) -> None:
    assert {row["method"] for row in found[1]["rows"]} == {"alone", "response.kd", "response.logit_matching"}


def test_what_does_not_apply_is_named_with_the_reason(found: tuple[Path, dict[str, Any], list[Any]]) -> None:
    _, told, heard = found
    assert list(told["unfit"]) == ["graph.lsp"]
    assert any(isinstance(event, Note) and event.text.startswith("graph.lsp does not apply") for event in heard)


def test_every_method_is_tuned_alike_and_opens_the_test_split_only_with_its_seeds(found: tuple[Path, dict[str, Any], list[Any]]) -> None:
    out, told, _ = found
    for method in ("alone", "response.kd", "response.logit_matching"):
        tuned = [one for one in trials(out, method) if "test" not in one]
        final = [one for one in trials(out, method) if "test" in one]
        assert len(tuned) == 2
        assert sorted(one["seed"] for one in final) == [0, 1]
        assert not {one["seed"] for one in tuned} & {0, 1}
        best = max(tuned, key=lambda one: one["validation"]["accuracy"])
        row = next(row for row in told["rows"] if row["method"] == method)
        assert row["weight"] in [one["weight"] for one in tuned if one["validation"]["accuracy"] == best["validation"]["accuracy"]]
        assert all(one["weight"] == row["weight"] for one in final)
        assert {one["steps"] for one in tuned + final} == {told["steps"]}


def test_rows_are_ranked_and_differences_are_paired_by_seed(found: tuple[Path, dict[str, Any], list[Any]]) -> None:
    out, told, _ = found
    assert [row["mean"] for row in told["rows"]] == sorted((row["mean"] for row in told["rows"]), reverse=True)
    by = {method: {one["seed"]: one["test"]["accuracy"] for one in trials(out, method) if "test" in one} for method in ("alone", "response.kd")}
    row = next(row for row in told["rows"] if row["method"] == "response.kd")
    assert row["over_alone"]["mean"] == pytest.approx(statistics.mean(by["response.kd"][seed] - by["alone"][seed] for seed in (0, 1)))
    assert "over_kd" not in row


def test_a_second_call_runs_only_what_is_missing_and_finds_the_same(found: tuple[Path, dict[str, Any], list[Any]]) -> None:
    out, told, _ = found
    lost = next(file for file in out.glob("trials/response.logit_matching-*.json") if "test" in read_json(file))
    before = read_json(lost)
    lost.unlink()
    heard = list[Any]()
    again = compare_methods(RECIPE, methods=["logit_matching", "lsp"], seeds=2, factors=[0.5, 1.0], out=out, listener=heard.append)
    assert sum(isinstance(event, Progress) and event.stage in ("tune", "seeds") for event in heard) == 1
    assert read_json(lost)["test"] == before["test"]
    assert json.dumps(again) == json.dumps(told)


@pytest.mark.parametrize(
    ("change", "options", "message", "kind"),
    [
        ({}, {"methods": ["respnse.kd"]}, "no part 'respnse.kd' among objectives", RecipeError),
        ({}, {"seeds": 1}, "2 seeds or more", RecipeError),
        ({}, {"factors": [0.0]}, "factors above zero", RecipeError),
        ({"stages": {"teacher": RECIPE["stages"]["teacher"]}}, {}, "distils no student", RecipeError),
        ({"task": {**RECIPE["task"], "validation": 0}}, {}, "no validation split", MismatchError),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str, kind: type[LimbeckError]
) -> None:
    with pytest.raises(kind, match=message):
        compare_methods(RECIPE | change, out=tmp_path / "out", **options)
    assert not (tmp_path / "out" / "teacher").exists()


def computing(group: int) -> list[int]:
    """The processes of a group that are still at work."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its = file.read_text().rpartition(")")[2].split()[:3]
            found += [int(file.parent.name)] if int(its) == group and state != "Z" else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
def test_a_killed_comparison_leaves_no_process_behind_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    command = [sys.executable, "-m", "limbeck", "compare", "recipe.yaml", "--methods", "kd", "--seeds", "2", "--factors", "1", "--json", "--quiet"]
    started = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trials = tmp_path / "runs" / "small-compare" / "trials"
    deadline = time.monotonic() + 120
    while not list(trials.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    until = time.monotonic() + 20
    while (left := computing(started.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a worker outlived its comparison"
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {row["method"] for row in json.loads(done.stdout)["rows"]} == {"alone", "response.kd"}
