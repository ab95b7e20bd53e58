"""What lies beside a run's results."""

from pathlib import Path

import pytest

from limbeck.core.errors import ArtifactError, LockedError
from limbeck.core.files import lock
from limbeck.pipeline.clean import clean, leftovers, runs_under


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with something of each kind."""
    files = {
        "recipe.yaml": 5, "run.json": 7, "stages/a/model.safetensors": 11, "cache/a-012345678901/model.safetensors": 100,
        "cache/a-012345678901/checkpoint/00000001/state.json": 20, "cache/measured/a.onnx": 300, "work/b-012345678901/checkpoints/x": 4000, "logs/a/m.csv": 9,
        "knowledge/0123456789ab/00-x.bin": 50,
    }  # fmt: skip
    for name, size in files.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path / "run"


def test_each_kind_is_listed_with_its_size(run):
    found = {one.path.relative_to(run).as_posix(): one for one in leftovers(run)}
    assert {name: one.bytes for name, one in found.items()} == {
        "cache/a-012345678901": 120,
        "cache/measured": 300,
        "knowledge/0123456789ab": 50,
        "work/b-012345678901": 4000,
    }
    assert found["cache/a-012345678901"].what.startswith("shelved stage")
    assert found["cache/measured"].what.startswith("files made for measuring")
    assert found["work/b-012345678901"].what.startswith("unfinished stage")


def test_listing_writes_nothing(run):
    before = sorted(run.rglob("*"))
    leftovers(run)
    assert sorted(run.rglob("*")) == before


def test_cleaning_leaves_the_results(run):
    assert [one.bytes for one in clean(run)] == [120, 300, 50, 4000]
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left == {".lock", "recipe.yaml", "run.json", "stages/a/model.safetensors", "logs/a/m.csv"}
    assert clean(run) == []


def test_what_a_link_points_to_stays(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (run / "cache" / "linked").symlink_to(outside)
    (run / "cache" / "a-012345678901" / "inner").symlink_to(outside)
    clean(run)
    assert (outside / "precious").read_text() == "x"
    assert not list((run / "cache").iterdir())


def test_a_run_at_work_is_left_alone(run):
    with lock(run), pytest.raises(LockedError, match="another limbeck run is working"):
        clean(run)
    assert (run / "work" / "b-012345678901").is_dir()


@pytest.mark.parametrize("act", [leftovers, clean])
def test_another_folder_is_refused_and_untouched(tmp_path, act):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine").write_text("x")
    with pytest.raises(ArtifactError, match="is no run of limbeck"):
        act(tmp_path)
    with pytest.raises(ArtifactError, match="is no run of limbeck"):
        act(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache", "mine"]


def test_runs_are_found_by_their_recipe(run):
    (run.parent / "other").mkdir()
    assert runs_under(run.parent) == [run]
    assert runs_under(run / "nowhere") == []
